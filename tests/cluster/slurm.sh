#!/usr/bin/env bash
# A real SLURM of one node on loopback, in a folder of its own, for as long as a command runs:
#   tests/cluster/slurm.sh                          runs toy.py, a graph of small notebooks, through dask-jobqueue
#   tests/cluster/slurm.sh xstudy run lab-quick --cluster tests/cluster/slurm.yaml
# What it needs is in README.md. It touches no SLURM or munge of the system, and ends what it started.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
for need in munged slurmctld slurmd sbatch; do
  command -v $need >/dev/null || { echo "slurm.sh: there is no $need: apt-get install slurm-wlm munge" >&2; exit 2; }
done
[ "$(id -u)" = 0 ] || { echo "slurm.sh: run it as root (slurmd starts jobs in users' names)" >&2; exit 2; }

dir=$(mktemp -d /tmp/xstudy-slurm.XXXXXX)
pids=()
finish() {
  code=$?
  trap - EXIT
  scancel --user root 2>/dev/null || true
  for _ in $(seq 20); do [ -z "$(squeue -h 2>/dev/null)" ] && break; sleep 0.5; done
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  wait 2>/dev/null || true
  if [ $code != 0 ]; then for log in "$dir"/*.log "$dir"/jobs/*; do [ -f "$log" ] && echo "== $log" && tail -n 15 "$log"; done >&2; fi
  rm -rf "$dir"
  exit $code
}
trap finish EXIT

chmod 755 "$dir"
mkdir -p "$dir"/{state,spool,munge,jobs}
chmod 700 "$dir"/munge
dd if=/dev/urandom of="$dir/munge/key" bs=1024 count=1 status=none
chmod 600 "$dir/munge/key"
munged --foreground --force --socket="$dir/munge.socket" --key-file="$dir/munge/key" --pid-file="$dir/munge/pid" \
  --seed-file="$dir/munge/seed" >"$dir/munge.log" 2>&1 &
pids+=($!)

host=$(hostname -s)
cpus=$(nproc)
memory=$(awk '/MemTotal/ {print int($2 / 1024 * 0.9)}' /proc/meminfo)
port=$((20000 + $$ % 10000))
export SLURM_CONF="$dir/slurm.conf"
cat > "$SLURM_CONF" <<CONF
ClusterName=xstudy
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmdPort=$((port + 1))
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$dir/munge.socket
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
MailProg=/bin/true
SchedulerParameters=batch_sched_delay=0,sched_interval=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=$memory State=UNKNOWN
PartitionName=normal Nodes=$host Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
CONF
# Jobs are not put into cgroups; slurmd asks for a plugin all the same, and the one for version 1 asks nothing of the machine.
printf 'CgroupPlugin=cgroup/v1\nConstrainCores=no\nConstrainRAMSpace=no\n' > "$dir/cgroup.conf"

for _ in $(seq 50); do [ -S "$dir/munge.socket" ] && break; sleep 0.1; done
slurmctld -D -i >"$dir/slurmctld.out.log" 2>&1 &
pids+=($!)
slurmd -D -N "$host" >"$dir/slurmd.out.log" 2>&1 &
pids+=($!)
for _ in $(seq 60); do [ "$(sinfo -h -o %T 2>/dev/null)" = idle ] && break; sleep 0.5; done
[ "$(sinfo -h -o %T)" = idle ] || { echo "slurm.sh: the node did not come up: $(sinfo -h -o '%T %E')" >&2; exit 1; }
echo "SLURM $(sinfo --version | cut -d' ' -f2): one node, $cpus cores, $memory MB" >&2

export SBATCH_OUTPUT="$dir/jobs/%j.log"
if [ $# = 0 ]; then set -- "${PYTHON:-python}" "$here/toy.py"; fi
"$@"
