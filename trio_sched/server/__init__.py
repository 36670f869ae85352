"""The server: one Trio nursery around one actor that owns the state. `serve` is the way in; `Config` what it is
given."""
