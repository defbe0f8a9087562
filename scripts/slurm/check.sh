#!/usr/bin/env bash
# Does a job array of a real Slurm find what one process finds? Starts a Slurm of two nodes on this machine, runs a sweep on it, kills a task in
# the middle, and compares the results with those of one process.
#
#     scripts/slurm/check.sh [FOLDER OF advae-host AND PLUGINS]     (default: target/release)
#
# Needs root, and Debian's packages slurm-wlm and munge. Ends with 0 if all figures are equal.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
bin=$(cd "${1:-$root/target/release}" && pwd)
work=$(mktemp -d /tmp/advae-slurm-XXXXXX)
host=$(hostname -s)
export SLURM_CONF=$work/slurm.conf ADVAE_PLUGIN_PATH=$bin PATH=$bin:$PATH

finish() {
    for pid in "$work"/*.pid; do
        if [ -f "$pid" ]; then kill "$(cat "$pid")" 2>/dev/null || true; fi
    done
    if [ -n "${munged:-}" ]; then kill "$munged" 2>/dev/null || true; fi
}
trap finish EXIT

cat > "$SLURM_CONF" <<CONF
ClusterName=advae
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool.%n
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.%n.pid
SlurmctldLogFile=$work/slurmctld.log
SlurmdLogFile=$work/slurmd.%n.log
SlurmctldPort=16817
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MpiDefault=none
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=17001 CPUs=1 RealMemory=1000
NodeName=n2 NodeHostname=$host NodeAddr=127.0.0.1 Port=17002 CPUs=1 RealMemory=1000
PartitionName=main Nodes=n1,n2 Default=YES State=UP
CONF
mkdir -p "$work/state" "$work/spool.n1" "$work/spool.n2" /run/munge
if ! pgrep -x munged > /dev/null; then
    [ -f /etc/munge/munge.key ] || dd if=/dev/urandom of=/etc/munge/munge.key bs=1 count=1024 2>/dev/null
    chown munge: /etc/munge/munge.key /run/munge
    chmod 400 /etc/munge/munge.key
    runuser -u munge -- munged --foreground > "$work/munged.log" 2>&1 &
    munged=$!
    sleep 1
fi
slurmctld
slurmd -N n1
slurmd -N n2
for _ in $(seq 30); do
    if [ "$(sinfo --noheader --states=idle --format=%D | paste -sd+ | bc)" = 2 ]; then break; fi
    sleep 1
done
sinfo

cd "$work"
cat > sweep.toml <<SWEEP
[defaults]
samples = 40
threat-model = "white_box"

[[matrix]]
classifier = ["model_d", "model_x"]
purifier = ["none", "advae"]
attack = ["fgsm", "pgd", "mi_fgsm", "noise", "deepfool"]

[slurm]
tasks = 5
partition = "main"
cpus = 1
time = "10:00"
SWEEP
advae-host run sweep.toml --out one.jsonl > /dev/null
# The second part is killed as soon as it has begun to write.
(
    until [ -s sweep.2-of-5.jsonl ]; do sleep 0.05; done
    pkill -9 -f -- "--shard 2/5" && echo "killed part 2"
) &
time advae-host run sweep.toml --launcher slurm > /dev/null
grep -h SLURMD_NODENAME sweep.*.log 2>/dev/null | sort | uniq -c || true
for file in one sweep; do
    advae-host report $file.jsonl --format csv | cut -d, -f1-18,24- | sort > $file.csv
done
if cmp one.csv sweep.csv; then
    echo "20 cells are equal ($(wc -l < sweep.csv) lines)"
else
    diff one.csv sweep.csv | head
    exit 1
fi
