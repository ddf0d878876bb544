"""Models on the workbench side (torch): what they are built of and what they cost."""
