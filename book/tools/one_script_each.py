"""For Sphinx: an inline script that it lists twice is loaded once.

Sphinx 7 compares a script without a file that an extension adds late, file name "", with its own copy of it,
file name None, and keeps both. The second declares the same constants again: an error on the console of every
page.
"""


def without_doubles(app, pagename, templatename, context, doctree):
    scripts = context.get("script_files", [])
    keys = [
        (script.filename or "", script.priority, *sorted(script.attributes.items())) for script in scripts
    ]
    context["script_files"] = [script for i, script in enumerate(scripts) if keys[i] not in keys[:i]]


def setup(app):
    app.connect("html-page-context", without_doubles)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
