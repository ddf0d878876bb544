"""What `draw_figures.py` draws: one module per architecture, and the canvas they draw on."""
