"""BlockAnalysis."""
