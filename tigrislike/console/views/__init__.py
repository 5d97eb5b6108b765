"""What the console's pages show and do: a module for each part of the store, with a table of its pages.

The order of the tables is that of the places to go to.
"""

from . import audit, caches, keys, node, objects, overview, queue

PAGES = [
    *overview.PAGES,
    *queue.PAGES,
    *node.NODES,
    *objects.PAGES,
    *caches.PAGES,
    *keys.PAGES,
    *node.PAGES,
    *audit.PAGES,
]
