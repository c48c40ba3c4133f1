"""Faster twins of what methods/ define in torch; optional."""
