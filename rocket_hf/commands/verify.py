"""Verify a published policy or adapter with its own self-test: configuration, weights, processor and code.

The code that is stored with the weights is executed only if it is, byte for byte, that of the installed rocket-hf.
Otherwise the installed version's classes run the self-test; --trust-remote-code runs the stored code instead. A folder
that names code of another place is refused in any case.
"""

import argparse

HELP = "verify a published policy or adapter with its self-test"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="REPO_OR_FOLDER", help="Hub repository, such as owner/name, or a folder")
    parser.add_argument(
        "--trust-remote-code", action="store_true",
        help="execute the code in the repository even if it is not that of the installed rocket-hf",
    )  # fmt: skip
    parser.add_argument("--revision", help="tag, branch or commit of the repository (default: main)")


def run(arguments: argparse.Namespace) -> int:
    from transformers.utils import logging

    from rocket_hf.publishing.verify import verify_policy

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    verified = verify_policy(arguments.source, arguments.revision, trust_remote_code=arguments.trust_remote_code)
    report = verified.report
    print(f"verified   {verified.source}" + (f" at {verified.commit}" if verified.commit else ""))
    for line in report.summary_lines():
        print(f"           {line}")
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    print(f"           published with {versions}")
    if verified.unexecuted_code:
        print_unexecuted_code(verified.unexecuted_code)
    print(f"\n{verified.snippet}")
    return 0


def print_unexecuted_code(names: list[str]) -> None:
    from rocket_hf import __version__

    listed = ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
    print(f"not run    {listed}: this code differs from that of rocket-hf {__version__}, whose own classes ran the")
    print("           self-test. Read it before you load the policy with trust_remote_code=True.")
