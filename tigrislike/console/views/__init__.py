"""What the console's pages show and do: a module for each part of the store, with a table of its pages.

The order of these tables is that of the places to go to.
"""

from . import overview, queue

PAGES = [*overview.PAGES, *queue.PAGES]
