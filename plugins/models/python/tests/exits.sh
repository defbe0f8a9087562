#!/bin/sh
# A process that ends before it says anything.
exit 3
