"""The catalogue of reasons: each one that a condition, a change or a plan may have, with advice for a person."""

from collections.abc import Mapping

from ipnext.model.lifecycle.status import Reason

ADVICE: Mapping[Reason, str] = {
    Reason.PENDING: "Nothing to do: the change waits for its turn.",
    Reason.PROGRESSING: "Nothing to do: the run is on its way; `ipnext wait MODEL --for Ready` waits for its end.",
    Reason.SUCCEEDED: "Nothing to do.",
    Reason.SERVING: "Nothing to do.",
    Reason.NOT_PUBLISHED: "Publish a first snapshot of every part: `ipnext publish MODEL --part NAME=DIR`.",
    Reason.SUPERSEDED: "Nothing to do: a newer change takes its place.",
    Reason.ROLLED_BACK: (
        "The former generation serves. See `ipnext events MODEL` for what went wrong, then publish a repaired snapshot."
    ),
    Reason.ARTIFACT_MISSING: "A file of the snapshot is not in the artifact store: publish the snapshot again.",
    Reason.ARTIFACT_DIGEST_MISMATCH: (
        "A file changed after it was published: publish the snapshot again from its source."
    ),
    Reason.SIGNATURE_INVALID: (
        "The snapshot is not signed by a key of spec.validation.signers: sign it with `ipnext sign`, publish it again."
    ),
    Reason.SNAPSHOT_DENIED: (
        "An administrator denied the snapshot, a file of it, or what it comes from: publish another one. "
        "`ipnext get denials` has the reason."
    ),
    Reason.ENGINE_MISMATCH: (
        "A part has no snapshot yet, or one that was made for another engine than the manifest names: "
        "publish one, or change the manifest."
    ),
    Reason.UNSAFE_FORMAT: (
        "The snapshot holds a file that runs code when it is loaded: export it with ipnext, as safetensors. "
        "If the message names a chat template, repair that."
    ),
    Reason.SCHEMA_MISMATCH: (
        "Tensors, settings or parts do not fit each other: repair what the message names, then publish again."
    ),
    Reason.NON_FINITE_WEIGHTS: "The weights hold NaN or infinity: publish a snapshot from a healthy training step.",
    Reason.SPLIT_REFUSED: (
        "The policy in spec.split does not fit the model, or a step in spec.optimization what it cuts: change what the "
        "message names, apply, publish again."
    ),
    Reason.SPLIT_DIFFERS: (
        "Cut like this the model answers otherwise: keep the modules that the message's output comes from in one part."
    ),
    Reason.OPTIMIZATION_REFUSED: (
        "A step of spec.optimization does not fit the snapshot: change what the message names, apply, publish again."
    ),
    Reason.ACCURACY_LOST: (
        "A step of spec.optimization broke a limit: raise the limit, choose a gentler step, or write onRefusal: keep; "
        "then apply and publish again."
    ),
    Reason.STAGE_REFUSED: (
        "A stage of the lifecycle refused the change: the message names the stage and why; mend that, publish again."
    ),
    Reason.STAGE_FAILED: (
        "A stage of another package gave no answer: the message names it. Install or repair it for every worker and "
        "the API (`ipnext get stages`), or take it out of spec.lifecycle; then apply and publish again."
    ),
    Reason.METRICS_REGRESSED: (
        "The new snapshot is worse than the serving one on its replay set: publish a better one, raise the limit of "
        "spec.validation.replay, or let this change pass with `ipnext override CHANGE --check replay --reason TEXT`."
    ),
    Reason.GOLDEN_MISMATCH: (
        "An output differs from a golden request of the snapshot: export the model again, widen its tolerance, or "
        "let this change pass with `ipnext override CHANGE --check golden --reason TEXT`."
    ),
    Reason.PAUSED: "A person paused the model: `ipnext resume MODEL` lets it go on.",
    Reason.AWAITING_APPROVAL: (
        "A wave waits for a person: look at its answers, then `ipnext approve MODEL` or `ipnext abort MODEL`."
    ),
    Reason.ABORTED: "A person stopped the change. Publish again, or apply the manifest again, to try once more.",
    Reason.FROZEN: (
        "A freeze is in force: wait until it ends, or let the change pass with `ipnext override CHANGE --reason TEXT`."
    ),
    Reason.NO_CAPACITY: "The fleet has no room: raise the supply, lower the demand, or allow another hardware kind.",
    Reason.OVER_BUDGET: "The owner's budget does not pay for it: raise the budget or lower the demand.",
    Reason.QUOTA_EXCEEDED: (
        "The owner's quota is used up: ask for less, retire or shrink other models, or raise the quota."
    ),
    Reason.PLANNER_INFEASIBLE: (
        "No placement keeps every rule: change what the message names, apply, then publish again."
    ),
    Reason.PLANNER_FAILED: (
        "The planner found no answer in time; the plan in force stays. Ask again with `ipnext replan`."
    ),
    Reason.TRANSITION_REFUSED: "There is no safe way there with this supply: add the surge that the message names.",
    Reason.LOAD_FAILED: "A host could not load the snapshot: see the host's message, then publish a repaired one.",
    Reason.OUT_OF_MEMORY: (
        "The part needs more memory than the host gives: raise memoryBytes or choose larger hardware."
    ),
    Reason.CRASH_LOOP: "A host ends again and again: see its log, whose file is named at the host.",
    Reason.REGION_UNREACHABLE: (
        "The region's infrastructure does not answer: see `ipnext get regions`; bring it back, "
        "or declare it lost with `ipnext drain REGION --disaster`."
    ),
    Reason.UNAVAILABLE: (
        "Something that the platform needs (the artifact store, a database) does not answer: bring it back, "
        "publish again."
    ),
    Reason.ROUTE_FAILED: "A gateway did not take its routes: see the region's gateway, then try again.",
    Reason.GATE_FAILED: (
        "The new generation answered worse than its gate allows and was taken back: look at its answers."
    ),
    Reason.DEADLINE_EXCEEDED: (
        "A step took longer than rollout.deadlineSeconds, or a wave waited longer than rollout.manualDeadlineSeconds "
        "for a person: the message says which."
    ),
    Reason.FRESH: "Nothing to do.",
    Reason.TRAINING_LATE: (
        "Nothing newer is known: look at the training job, or publish a newer snapshot "
        "(`ipnext publish MODEL --part NAME=DIR`)."
    ),
    Reason.PICK_UP_LATE: (
        "The newest version is not published: see `ipnext get sources` and `ipnext describe source MODEL NAME`; "
        "resume the source, or mend what the message names."
    ),
    Reason.VALIDATION_LATE: (
        "The newest snapshot is still in validation, or was refused by it: see `ipnext describe MODEL`, "
        "then publish a repaired one."
    ),
    Reason.FREEZE_LATE: (
        "A freeze holds the newest snapshot back: wait until it ends, or let the change pass with "
        "`ipnext override CHANGE --reason TEXT`."
    ),
    Reason.SUPPLY_LATE: (
        "The newest snapshot waits for capacity, a budget or its replicas: the message names what is missing."
    ),
    Reason.GATE_LATE: (
        "The newest snapshot waits at a gate or a pause, or was taken back: look at its answers, then approve, resume "
        "or publish again."
    ),
    Reason.INTERNAL_ERROR: "A fault of the platform: open the run's link and report what it shows.",
}
"""The advice for each reason. docs/reference/reasons.md has the same sentences."""

ADVICE_FOR_MOVES: Mapping[Reason, str] = {
    Reason.ABORTED: (
        "A person stopped the move; the model serves where it did. `ipnext replan`, "
        "or the drain asked for again, plans anew."
    ),
    Reason.ROLLED_BACK: (
        "The move went back; the model serves where it did. See `ipnext events MODEL` for why; "
        "the next replan tries again."
    ),
    Reason.TRANSITION_REFUSED: (
        "The move is refused; the model serves where it did. Mend what the message names; the next replan plans anew."
    ),
}
"""The advice for a plan's move of a model to another place: there is nothing to publish."""
