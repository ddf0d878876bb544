"""What a person sees of a selection: the terminal's last lines, the HTML report, a notebook's table.

All three tell the same story in the same words (phrases.py) and take nothing but a `Selection`.
"""
