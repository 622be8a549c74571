"""Buttons that lead to the book's own repository, or none at all.

Without an address the theme's Colab button would point at a stranger's repository. The address is
GITHUB_REPOSITORY (set on GitHub's machines) or the remote `origin`; where there is neither, or it
is not on GitHub, every such button is left out. The buttons open the branch `colab`, which holds
the chapters in plain Markdown (see _tools/colab.py).
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BRANCH = "colab"


def github_slug(url: str) -> str | None:
    """'owner/name' of a GitHub address in any of git's spellings, else None."""
    found = re.fullmatch(
        r"(?:https?://(?:[^@/]+@)?|ssh://git@|git@)github\.com[:/]([\w.-]+)/([\w.-]+?)(?:\.git)?/?",
        url.strip(),
    )
    return f"{found[1]}/{found[2]}" if found else None


def git(*words: str, root: Path = ROOT) -> str:
    """What git answers in this repository; '' where there is no git, or it has no answer."""
    try:
        answer = subprocess.run(
            ["git", *words], cwd=root, capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer.stdout.strip()


def repository_slug(root: Path = ROOT) -> str | None:
    """'owner/name' of the repository that this book is built from, or None."""
    slug = os.environ.get("GITHUB_REPOSITORY", "").strip()
    if re.fullmatch(r"[\w.-]+/[\w.-]+", slug):
        return slug
    return github_slug(git("remote", "get-url", "origin", root=root))


def _configure(app, config):
    slug = repository_slug()
    options = config.html_theme_options
    if slug is None:
        options["launch_buttons"] = {}
        options["use_repository_button"] = False
        options.pop("repository_url", None)
        return
    options["repository_url"] = f"https://github.com/{slug}"
    options["repository_branch"] = BRANCH
    options["path_to_docs"] = ""
    options["use_repository_button"] = True
    options["launch_buttons"] = {
        "notebook_interface": "classic",
        "colab_url": "https://colab.research.google.com",
    }


def setup(app):
    app.connect("config-inited", _configure, priority=100)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
