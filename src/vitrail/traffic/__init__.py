"""Load on a served artifact: the real server in a process of its own, clients over HTTP, and their waits.

process.py starts and ends the server, http.py sends one request, open_loop.py sends at times drawn
beforehand, serving.py measures over several starts and judges.
"""
