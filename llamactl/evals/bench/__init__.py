"""Benchmarks (paper, section 2.3 and Table 3): what is asked, how an answer is judged, what others have reached."""
