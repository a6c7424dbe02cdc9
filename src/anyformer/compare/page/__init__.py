"""compare.html: the result of a comparison, on one page that needs no network.

panels    groups and tasks with intervals, chance and verdicts, as texts and positions
page      all of it, with curves, costs, diagrams, configs, texts, and attention on the same sentence
"""

from anyformer.compare.page.page import PAGE, write_page

__all__ = ["PAGE", "write_page"]
