"""Show a model on a page in the browser: draw, encode, change codes, sample. It is served to this machine alone.

python scripts/demo.py outputs/mnist
python scripts/demo.py me/vqvae-mnist --port 8000
"""

__registers_after_parsing__ = True  # see hf_vqvae/__init__.py

import tempfile
from dataclasses import dataclass

import hf_vqvae
from hf_vqvae.arguments import flag
from hf_vqvae.command_line import ScriptArgumentParser, run_script


@dataclass
class DemoArguments:
    """Which model to show and where."""

    model_revision: str | None = flag(None, "Branch, tag or commit of a model on the Hub.")
    port: int = flag(0, "Port on 127.0.0.1; 0: any that is free.", at_least=0, below=2**16)


def main() -> None:
    parser = ScriptArgumentParser(DemoArguments, description=__doc__)
    parser.add_argument("model", metavar="MODEL", help="A folder, or owner/name on the Hub.")
    arguments, rest = parser.parse()

    hf_vqvae.register()
    from hf_vqvae.export.page import serve, write_local_page

    with tempfile.TemporaryDirectory() as folder:
        write_local_page(folder, rest.model, arguments.model_revision)
        with serve(folder, arguments.port) as server:
            print(f"Open http://127.0.0.1:{server.server_port} in a browser. Ctrl+C ends it.", flush=True)
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                print()


if __name__ == "__main__":
    run_script(main)
