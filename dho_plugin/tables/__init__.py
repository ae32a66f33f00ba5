"""Tables of many runs: which they are (cells), running each of them once (sweep), and what comes out (summary)."""
