"""Variant -> Export: files made with torch, run without it."""
