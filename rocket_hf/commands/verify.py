"""Verify a published policy with its own self-test: code, configuration, weights and processor of one commit.

The command executes the code that is stored with the weights, as loading the policy does.
"""

import argparse

HELP = "verify a published policy with its self-test"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="REPO_OR_FOLDER", help="Hub repository, such as owner/name, or a folder")
    parser.add_argument("--revision", help="tag, branch or commit of the repository (default: main)")


def run(arguments: argparse.Namespace) -> int:
    from transformers.utils import logging

    from rocket_hf.publishing.verify import verify_policy

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    verified = verify_policy(arguments.source, arguments.revision)
    report = verified.report
    print(f"verified   {verified.source}" + (f" at {verified.commit}" if verified.commit else ""))
    for line in report.summary_lines():
        print(f"           {line}")
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    print(f"           published with {versions}")
    print(f"\n{verified.snippet}")
    return 0
