"""Who carries out the changes of a model: entities, lifecycles, takeovers, repairs; and the attempts of activities."""
