//! An NFSv4.1 server in memory, scripted by the test.
