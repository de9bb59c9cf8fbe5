"""What a gradless does when its callers misbehave, when there are too many of them, and when it is stopped: scenarios
against real server processes, each held to bars. `python -m reliability` runs them, `python -m reliability.soak` all
kinds of callers at once for as long as wanted."""
