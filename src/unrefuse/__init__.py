"""Edit an open chat model so that it stops false refusals and keeps the true ones.

    import unrefuse
    result = unrefuse.edit("demo", out="edited")

The public names stand in `__init__.pyi`. Each is imported when it is first used, so that
`import unrefuse` costs nothing.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
