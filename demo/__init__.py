"""`ipnext demo`: the whole life of a real ranking model, watched by a person."""
