"""Whether a patched model is good enough: intervals for paired scores, pass or fail, and the answers that flipped."""
