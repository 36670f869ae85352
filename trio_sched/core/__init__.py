"""The scheduling rules: pure and synchronous, fed with events and time, answering with effects."""
