"""For Sphinx: each code cell of a chapter can be linked to by its id.

    [the cell `shift`](../notebooks/02_collapse.ipynb#cell-shift)

The prefix keeps a cell's id apart from that of a heading.
"""

from pathlib import Path

import nbformat
from docutils import nodes


def name_cells(app, doctree):
    """Give the cells of a notebook's page their ids, and tell MyST's links of them."""
    document = app.env.docname
    file = Path(app.env.doc2path(document))
    if file.suffix != ".ipynb":
        return
    cells = nbformat.read(file, as_version=4).cells
    slugs = app.env.metadata[document].setdefault("myst_slugs", {})
    for container in doctree.findall(nodes.container):
        if container.get("nb_element") == "cell_code":
            name = f"cell-{cells[container['cell_index']].id}"
            container["ids"].append(name)
            slugs[name] = (0, name, name)


def setup(app):
    app.connect("doctree-read", name_cells)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
