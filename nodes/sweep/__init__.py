"""SweepXY."""
