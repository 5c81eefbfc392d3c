"""The command `python -m app`: load a checkpoint and open the page."""

from __future__ import annotations

import argparse
import socket
import sys
from collections.abc import Sequence

import captioner
from captioner import ConfigError
from captioner.cli.parsing import Parser, exit_code


def main(argv: Sequence[str] | None = None) -> int:
    """Run the page until it is stopped and return the exit code."""
    return exit_code(lambda: _serve(argv))


def _serve(argv: Sequence[str] | None) -> None:
    args = _parser().parse_args(argv)
    port = _free_port(args.host, args.port)
    model = captioner.load(args.checkpoint)

    from app.page import launch  # gradio takes seconds to import; a wrong option should not

    page = launch(model, args.host, port, share=args.share)
    print(f"the page is open at {page.local_url} (Ctrl-C ends it)", flush=True)
    page.block_thread()


def _parser() -> Parser:
    parser = Parser(
        prog="python -m app",
        description="Caption pictures in the browser and see where the model looked for each word.",
    )
    add = parser.add_argument
    add("--checkpoint", default="checkpoints/coco_flickr8k", metavar="DIR",
        help="checkpoint folder or Hugging Face Hub id (%(default)s)")  # fmt: skip
    add("--host", default="127.0.0.1",
        help="address to listen on; 0.0.0.0 lets other machines in (%(default)s)")  # fmt: skip
    add("--port", type=_port, default=7860, metavar="N",
        help="port to listen on; 0 takes a free one (%(default)s)")  # fmt: skip
    add("--share", action="store_true",
        help="also open a temporary public address through Gradio's tunnel")  # fmt: skip
    return parser


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port; give a whole number up to 65535")
    return int(text)


def _free_port(host: str, port: int) -> int:
    """Return the port, or a free one for 0; raises ConfigError if it cannot be listened on."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.create_server((host, port), family=family) as listener:
            return int(listener.getsockname()[1])
    except OSError as error:
        reason = (error.strerror or str(error)).split(" (")[0].lower()
        raise ConfigError(
            f"cannot listen on {host} port {port}: {reason}; choose another --port or --host"
        ) from None


if __name__ == "__main__":
    sys.exit(main())
