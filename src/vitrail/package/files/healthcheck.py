"""Whether the server in this container is ready: exit code 0, or 1 with the reason.

Asked of the server itself, whatever proxy the environment names. Readiness sends a recorded photo through
the queue, so that it is red when the model is stuck.
"""

import http.client
import sys

PORT = 8000
TIMEOUT_S = 8.0


def main(port: int) -> int:
    """Ask once."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/v2/health/ready")
        answer = connection.getresponse()
        said = answer.read(300).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException) as error:
        print(f"no answer: {error}", file=sys.stderr)
        return 1
    print(said)
    return 0 if answer.status == 200 else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else PORT))
