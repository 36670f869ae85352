"""The scheduling rules: a pure, synchronous state machine that takes events and time, and returns effects."""
