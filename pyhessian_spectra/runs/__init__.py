"""How a long analysis is watched, kept and forecast."""
