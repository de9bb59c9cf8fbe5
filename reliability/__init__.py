"""What a gradless does when its callers misbehave: scenarios against real server processes, each held to bars.
`python -m reliability` runs them in turn; `python -m reliability.soak` sends callers of every kind at once, for as
long as wanted."""
