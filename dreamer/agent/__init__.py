"""The agent as pure functions of (state, data, key): world model, behaviour, their joint update."""
