"""``agent.yaml``: what an agent looks after. Read once, checked whole, and turned into values that cannot be wrong.

    read      the file as a whole: server, identities, and the sections of parts that not every agent has
    table     one mapping of the file, with the line of everything         values    checks of single values
    targets   the table of kinds of target, and their presets              files     PEM files and keystores
    after     validate, reload, look: what follows a delivery              model     what it all turns into

A new kind of target is a module here with one function and one line in :data:`targets.KINDS`; a new section likewise in
:data:`read.SECTIONS`. Modules of kinds and sections are imported when a configuration uses them: most agents use few.
"""

from __future__ import annotations

from handclasp.agent.config.model import Config, Managed
from handclasp.agent.config.read import load_config, parse_config
from handclasp.agent.targets.base import Look, Reload, Target
from handclasp.agent.targets.files import FILES, Files

__all__ = ["FILES", "Config", "Files", "Look", "Managed", "Reload", "Target", "load_config", "parse_config"]
