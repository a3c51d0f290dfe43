"""Holds a published policy against its own self-test: its code, configuration, weights and processor, of one commit.

Runs the code that lies beside the weights, as loading it does.
"""

import argparse

HELP = "hold a published policy against its own self-test"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="REPO_OR_FOLDER", help="a Hub id like owner/name, or a folder")
    parser.add_argument("--revision", help="a tag, a branch or a commit (default: main)")


def run(arguments: argparse.Namespace) -> int:
    from transformers.utils import logging

    from rocket_hf.publishing.verify import verify

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    verified = verify(arguments.source, arguments.revision)
    report = verified.report
    print(f"verified   {verified.source}" + (f" at {verified.commit}" if verified.commit else ""))
    for told in report.sentences():
        print(f"           {told}")
    written = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    print(f"           published with {written}")
    print(f"\n{verified.snippet}")
    return 0
