#!/bin/sh
# A process that never answers.
exec sleep 600
