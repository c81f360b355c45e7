"""Figures from the files under `reports/`, one small module a figure, and the page that shows them all.

Imports no torch. Figures are drawn without pyplot, so nothing is kept open and no display is needed.
"""
