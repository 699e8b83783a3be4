"""Who may import whom, and which file alone may touch a fragile dependency."""

import subprocess
import sys

import pytest

from tests.house.source import LIBRARY, ROOT, SCRIPTS, imports, module_of, place

BASE = {"errors", "types", "geometry", "lookup", "rng", "atomic", "unpickle", "__version__"}
#: Room -> what it may import of ours (a room, or one module of it), besides itself.
MAY_IMPORT = {
    **dict.fromkeys([*BASE, "settings"], BASE),
    "audio": BASE,
    "kernels": BASE,
    "models": BASE | {"kernels", "audio", "settings"},
    "data": BASE | {"audio"},
    "objectives": BASE | {"models", "kernels"},
    "evaluation": BASE,
    "downstream": BASE
    | {"models", "kernels", "evaluation", "objectives.base", "objectives.masking", "data.manifest"}
    | {"data.tokens"},
    "engine": BASE | {"objectives.base", "data", "evaluation", "kernels"},
    "interop": BASE | {"models", "audio.backend", "objectives.base"},
    "extract": BASE | {"models", "data", "audio", "downstream", "evaluation", "objectives.base"},
    "report": BASE | {"evaluation", "audio"},
    "config": BASE | {"settings", "data.config", "engine.config", "models", "objectives.base"},
    # The public API, and the command line above everything.
    "": BASE | {"extract", "models"},
    "__main__": {"cli"},
    "cli": {"*"},
    "bench": {"*"},
}
#: Dependency -> the files that may import it.
ONLY_IN = {
    "deepspeed": {"speechssl/engine/deepspeed.py"},
    "torchaudio": {"speechssl/audio/backend.py"},
    "pickle": set(),
    "dill": set(),
    "joblib": set(),
}
#: Slow to import or not needed by everybody: imported inside the function that uses them.
INSIDE_FUNCTIONS = {
    "deepspeed", "torchaudio", "librosa", "transformers", "matplotlib", "sklearn", "jiwer",
    "huggingface_hub", "tqdm", "espeakng_loader", "jsonargparse",
}  # fmt: skip


@pytest.mark.parametrize("file", LIBRARY, ids=place)
def test_import_directions(file):
    room = module_of(file).split(".")[1] if file.parent != ROOT / "speechssl" else None
    room = room or ("" if file.stem == "__init__" else file.stem)
    assert room in MAY_IMPORT, f"{place(file)}: tell tests/house what '{room}' may import"
    allowed = MAY_IMPORT[room] | {room}
    for one in imports(file):
        if not one.module.startswith("speechssl.") or "*" in allowed:
            continue
        target = one.module.removeprefix("speechssl.")
        steps = target.split(".")
        prefixes = {".".join(steps[:n]) for n in range(1, len(steps) + 1)}
        assert prefixes & allowed, (
            f"{place(file, one.line)} imports {one.module}; '{room or 'speechssl'}' may import "
            f"{', '.join(sorted(allowed))}"
        )


@pytest.mark.parametrize("file", SCRIPTS, ids=place)
def test_data_prep_uses_manifests_audio_and_nothing_else(file):
    for one in imports(file):
        if one.module.startswith("speechssl."):
            allowed = (
                "errors",
                "types",
                "rng",
                "atomic",
                "audio.",
                "data.manifest",
                "data.readers",
            )
            assert one.module.removeprefix("speechssl.").startswith(allowed), place(file, one.line)


@pytest.mark.parametrize("file", [*LIBRARY, *SCRIPTS], ids=place)
def test_no_relative_or_upward_imports(file):
    for one in imports(file):
        assert one.module, f"{place(file, one.line)}: relative import"
        first = one.module.split(".")[0]
        assert first not in {"recipes", "tests"}, place(file, one.line)
        if file in LIBRARY:
            assert first != "data_prep", place(file, one.line)


@pytest.mark.parametrize("file", [*LIBRARY, *SCRIPTS], ids=place)
def test_fragile_dependencies_have_one_door(file):
    for one in imports(file):
        first = one.module.split(".")[0]
        if first in ONLY_IN:
            assert place(file) in ONLY_IN[first], f"{place(file, one.line)} imports {first}"


@pytest.mark.parametrize("file", [*LIBRARY, *SCRIPTS], ids=place)
def test_heavy_dependencies_are_imported_where_used(file):
    for one in imports(file):
        if one.module.split(".")[0] in INSIDE_FUNCTIONS:
            assert one.lazy, f"{place(file, one.line)}: import {one.module} inside the function"


def test_importing_the_package_imports_no_torch():
    code = "import sys, speechssl; print(sorted({'torch', 'numpy', 'yaml'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
