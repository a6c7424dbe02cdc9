"""compare.html: what a comparison found, on one page that needs no network.

panels    groups and tasks with intervals, chance and verdicts, as texts and places
models    costs, diagrams, configs, texts, attention on the same sentence
page      all of it, with curves of numbers over tokens, FLOPs and seconds
"""

from anyformer.compare.page.page import PAGE, write_page

__all__ = ["PAGE", "write_page"]
