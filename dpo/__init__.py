"""Offline preference optimisation (DPO and its relatives) on verl's training engine."""
