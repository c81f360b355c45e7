"""Two experiments or more beside each other: what differs, and whether it is more than chance.

Imports no torch: what a comparison needs stands in the experiments' files.
"""
