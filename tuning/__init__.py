"""Per-module keep rates: what each module loses if it is sparse, and a budget spent where it costs least."""
