/* SPDX-License-Identifier: Apache-2.0 */
/*
 * skvcctl_doctor.c - from facts to lines: what is well, what is not, and the exact thing to do about it.
 * Looks at nothing itself.
 */
#include "tools/skvcctl_doctor.h"
#include "tools/output.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cjson/cJSON.h>

#define KERNEL_NEEDED \
	513u /* major * 100 + minor: io_uring's registered buffers and multishot poll */
#define KERNEL_WANTED 605u /* SO_PEERPIDFD; 6.0 has io_uring's cheaper completions */
#define DROP_IN "systemctl edit skvcd, then below [Service]: "

static const char *const state_words[] = {
	[DOCTOR_OK] = "ok",
	[DOCTOR_NOTE] = "note",
	[DOCTOR_WARNING] = "warning",
	[DOCTOR_FAILURE] = "FAILED",
};

static struct doctor_line *add(struct doctor_report *r, enum doctor_state state, const char *check,
			       const char *format, ...) __attribute__((format(printf, 4, 5)));

static struct doctor_line *add(struct doctor_report *r, enum doctor_state state, const char *check,
			       const char *format, ...)
{
	struct doctor_line *l = &r->line[r->count < DOCTOR_LINES_MAX ? r->count++ : r->count - 1];
	va_list args;

	memset(l, 0, sizeof(*l));
	l->state = state;
	(void)snprintf(l->check, sizeof(l->check), "%s", check);
	va_start(args, format);
	(void)vsnprintf(l->says, sizeof(l->says), format, args);
	va_end(args);
	return l;
}

static void fix(struct doctor_line *l, const char *format, ...)
	__attribute__((format(printf, 2, 3)));

static void fix(struct doctor_line *l, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	(void)vsnprintf(l->fix, sizeof(l->fix), format, args);
	va_end(args);
}

/* ---- the daemon and its file ---- */

static void judge_config(const struct doctor_facts *f, struct doctor_report *r)
{
	const struct doctor_config *c = &f->config;

	if (c->wrong[0])
		fix(add(r, DOCTOR_FAILURE, "configuration", "%.250s", c->wrong),
		    "edit %.200s, and try: skvcd --check-config",
		    c->file[0] ? c->file : DOCTOR_CONFIG);
	else
		(void)add(r, DOCTOR_OK, "configuration", "%.200s",
			  c->file[0] ? c->file : "built-in defaults, no file");
}

static void judge_daemon(const struct doctor_facts *f, struct doctor_report *r)
{
	if (f->bus == SKVCCTL_OK && !strcmp(f->health, "ok"))
		(void)add(r, DOCTOR_OK, "daemon", "skvcd %s answers, health ok", f->version);
	else if (f->bus == SKVCCTL_OK)
		fix(add(r, DOCTOR_WARNING, "daemon", "skvcd %s answers, health: %s", f->version,
			f->health),
		    "see why: journalctl -u skvcd -n 50; skvcctl stats");
	else if (f->bus == SKVCCTL_NO_DAEMON && !f->daemon_pid)
		fix(add(r, DOCTOR_WARNING, "daemon", "none runs on %.150s", f->config.bus_socket),
		    "systemctl enable --now skvcd; if it fails: journalctl -u skvcd -n 20");
	else
		fix(add(r, DOCTOR_FAILURE, "daemon", "%.250s", f->bus_error),
		    "sudo skvcctl doctor; sudo journalctl -u skvcd -n 20");
}

/* ---- the kernel ---- */

static void judge_kernel(const struct doctor_facts *f, struct doctor_report *r)
{
	unsigned version = f->kernel_major * 100 + f->kernel_minor;

	if (version < KERNEL_NEEDED)
		fix(add(r, DOCTOR_FAILURE, "kernel", "Linux %s: io_uring is too old", f->kernel),
		    "install Linux 6.1 or newer; 5.13 is the oldest that does");
	else if (version < KERNEL_WANTED)
		fix(add(r, DOCTOR_NOTE, "kernel", "Linux %s", f->kernel),
		    "nothing has to be done; 6.5 or newer tells a client's death more surely");
	else
		(void)add(r, DOCTOR_OK, "kernel", "Linux %s", f->kernel);
}

static void judge_uring(const struct doctor_facts *f, struct doctor_report *r)
{
	struct doctor_line *l;

	if (!f->uring_error) {
		(void)add(r, DOCTOR_OK, "io_uring", "can be set up%s",
			  f->uring_modern_error ? ", without what 6.0 added" : "");
		return;
	}
	l = add(r, DOCTOR_FAILURE, "io_uring", "io_uring_setup: %s", strerror(f->uring_error));
	if (f->uring_disabled > 0)
		fix(l, "sysctl -w kernel.io_uring_disabled=0; to keep it: echo "
		       "kernel.io_uring_disabled=0 > /etc/sysctl.d/90-skvcd.conf");
	else if (f->uring_error == ENOSYS || f->uring_error == EPERM)
		fix(l, "a system call filter hides it: in a container run it with --security-opt "
		       "seccomp=unconfined, or a profile that allows io_uring_setup, "
		       "io_uring_enter and io_uring_register");
	else if (f->uring_error == ENOMEM)
		fix(l, DROP_IN "LimitMEMLOCK=infinity (in a shell: ulimit -l unlimited)");
	else
		fix(l, "install Linux 6.1 or newer");
}

/* ---- memory ---- */

static void judge_memlock(const struct doctor_facts *f, struct doctor_report *r)
{
	const char *whose = f->memlock_of_daemon ? "the daemon's limit" : "the limit here";
	char pool[16], limit[16];

	(void)skvcctl_format_bytes(f->config.pool_bytes, pool);
	(void)skvcctl_format_bytes(f->memlock_bytes, limit);
	if (!f->config.lock_memory)
		(void)add(r, DOCTOR_OK, "memlock", "not needed: [host] lock_memory = no");
	else if (f->memlock_bytes == UINT64_MAX || f->memlock_privileged)
		(void)add(r, DOCTOR_OK, "memlock", "%s: none", whose);
	else if (!f->memlock_of_daemon && (f->service || f->bus != SKVCCTL_NO_DAEMON))
		fix(add(r, DOCTOR_NOTE, "memlock", "%s is %s; skvcd has its own", whose, limit),
		    "sudo skvcctl doctor sees a running one's; of the unit: systemctl show skvcd -p "
		    "LimitMEMLOCK");
	else if (f->memlock_bytes < f->config.pool_bytes)
		fix(add(r, DOCTOR_FAILURE, "memlock", "%s is %s, the pool is %s", whose, limit,
			pool),
		    DROP_IN "LimitMEMLOCK=infinity (in a shell: ulimit -l unlimited; without "
			    "either: [host] lock_memory = no)");
	else
		fix(add(r, DOCTOR_WARNING, "memlock",
			"%s is %s: enough for the pool of %s, arenas "
			"count, too",
			whose, limit, pool),
		    DROP_IN "LimitMEMLOCK=infinity");
}

static void judge_memory(const struct doctor_facts *f, struct doctor_report *r)
{
	/* A running daemon has its pool already. */
	uint64_t room = f->available_bytes + f->locked_bytes;
	char pool[16], free[16], all[16];

	(void)skvcctl_format_bytes(f->config.pool_bytes, pool);
	(void)skvcctl_format_bytes(room, free);
	(void)skvcctl_format_bytes(f->memory_bytes, all);
	if (room >= f->config.pool_bytes)
		(void)add(r, DOCTOR_OK, "memory", "%s of %s for a pool of %s", free, all, pool);
	else
		fix(add(r, DOCTOR_FAILURE, "memory", "%s of %s are free, the pool is %s", free, all,
			pool),
		    "in %.200s: [host] pool = %" PRIu64 "M",
		    f->config.file[0] ? f->config.file : DOCTOR_CONFIG,
		    room / 2 >> 20 < 16 ? (uint64_t)16 : room / 2 >> 20);
}

/* What a restart does to the pool: its memfd and its index, one descriptor each. */
static void judge_restart(const struct doctor_facts *f, struct doctor_report *r)
{
	if (f->config.no_persist)
		fix(add(r, DOCTOR_NOTE, "restart",
			"a restart empties host memory: [host] persist = no"),
		    "in %.200s: [host] persist = yes",
		    f->config.file[0] ? f->config.file : DOCTOR_CONFIG);
	else if (!f->service && f->daemon_pid)
		fix(add(r, DOCTOR_NOTE, "restart",
			"no systemd to keep host memory over a restart of this daemon"),
		    "kill -USR2 %d loads the program again, and keeps it", f->daemon_pid);
	else if (f->service && f->store_fds >= 0 && f->store_fds < 2)
		fix(add(r, DOCTOR_WARNING, "restart",
			"systemd keeps %d descriptors for skvcd: a restart empties host memory",
			f->store_fds),
		    DROP_IN "FileDescriptorStoreMax=2");
	else if (f->service && f->store_fds >= 2)
		(void)add(r, DOCTOR_OK, "restart", "systemd keeps host memory over a restart");
}

static void judge_huge_pages(const struct doctor_facts *f, struct doctor_report *r)
{
	if (!f->huge_pages[0])
		fix(add(r, DOCTOR_NOTE, "huge pages", "this kernel has no transparent huge pages"),
		    "nothing has to be done; a kernel with CONFIG_TRANSPARENT_HUGEPAGE is faster");
	else if (strstr(f->huge_pages, "[never]"))
		fix(add(r, DOCTOR_WARNING, "huge pages", "transparent huge pages are off"),
		    "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled; to keep it: "
		    "transparent_hugepage=madvise on the kernel's command line");
	else if (f->config.nvme_path[0] && !f->config.no_persist &&
		 (strstr(f->shared_huge_pages, "[never]") ||
		  strstr(f->shared_huge_pages, "[deny]")))
		fix(add(r, DOCTOR_NOTE, "huge pages",
			"the pool has none (it is shared memory): NVMe I/O costs more"),
		    "echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled; to keep it: "
		    "that file in /etc/tmpfiles.d/; or [host] persist = no");
	else
		(void)add(r, DOCTOR_OK, "huge pages", "%s", f->huge_pages);
}

static void judge_numa(const struct doctor_facts *f, struct doctor_report *r)
{
	int node = f->config.numa_node;

	if (node >= 0 && !f->node_exists)
		fix(add(r, DOCTOR_FAILURE, "NUMA", "[host] numa_node = %d: there is no such node",
			node),
		    "choose one of those that `numactl --hardware` lists, or numa_node = -1");
	else if (node < 0 && f->nodes > 1 && f->gpus <= 0)
		fix(add(r, DOCTOR_NOTE, "NUMA", "%u nodes, and the pool may lie on any", f->nodes),
		    "[host] numa_node = the node of the engines' cores, see `numactl --hardware`");
	else if (node < 0 && f->nodes > 1)
		(void)add(r, DOCTOR_OK, "NUMA", "%u nodes; the pool goes to the GPU's", f->nodes);
	else
		(void)add(r, DOCTOR_OK, "NUMA", "%u node%s%s", f->nodes, f->nodes == 1 ? "" : "s",
			  node >= 0 ? ", the configured one is there" : "");
}

/* ---- NVMe ---- */

static void judge_nvme(const struct doctor_facts *f, struct doctor_report *r)
{
	const struct doctor_config *c = &f->config;
	char need[16], have[16];

	if (!c->nvme_path[0]) {
		(void)add(r, DOCTOR_OK, "NVMe", "no tier is configured ([nvme] path)");
		return;
	}
	if (f->nvme_dir_error) {
		fix(add(r, DOCTOR_FAILURE, "NVMe", "%.150s: %s", f->nvme_dir,
			strerror(f->nvme_dir_error)),
		    f->nvme_dir_error == ENOENT ? "install -d -o skvcd -g skvcd -m 700 %s"
						: "run as root to look: sudo skvcctl doctor (%s)",
		    f->nvme_dir);
		return;
	}
	if (f->nvme_direct_error)
		fix(add(r, DOCTOR_FAILURE, "O_DIRECT", "%.150s: %s", f->nvme_dir,
			strerror(f->nvme_direct_error)),
		    "[nvme] path = a file on ext4 or xfs on the NVMe drive, not on tmpfs, overlay "
		    "or a network");
	else
		(void)add(r, DOCTOR_OK, "O_DIRECT", "%.150s has direct I/O", f->nvme_dir);
	(void)skvcctl_format_bytes(c->nvme_bytes, need);
	(void)skvcctl_format_bytes(f->nvme_free_bytes + f->nvme_has_bytes, have);
	if (f->nvme_free_bytes + f->nvme_has_bytes < c->nvme_bytes)
		fix(add(r, DOCTOR_FAILURE, "NVMe", "%.150s has room for %s, the file is %s",
			f->nvme_dir, have, need),
		    "[nvme] size = %" PRIu64 "M, or another drive",
		    (f->nvme_free_bytes + f->nvme_has_bytes) / 64 * 60 >> 20 >> 8 << 8);
	else
		(void)add(r, DOCTOR_OK, "NVMe", "room for %s of %s", need, have);
}

/* ---- GPU ---- */

static void judge_mps(const struct doctor_facts *f, struct doctor_report *r)
{
	if (f->mps == DOCTOR_MPS_NONE)
		fix(add(r, DOCTOR_NOTE, "MPS",
			"is not running: bursts of coding take the whole "
			"GPU for their time"),
		    "for engines with short kernels: CUDA_MPS_PIPE_DIRECTORY=/run/nvidia-mps "
		    "nvidia-cuda-mps-control -d, and that variable for skvcd and the engines");
	else if (f->mps == DOCTOR_MPS_PRIVATE)
		fix(add(r, DOCTOR_WARNING, "MPS",
			"its pipe is %.100s, which skvcd.service does "
			"not see (PrivateTmp=)",
			f->mps_dir),
		    "start it with CUDA_MPS_PIPE_DIRECTORY=/run/nvidia-mps, and " DROP_IN
		    "Environment=CUDA_MPS_PIPE_DIRECTORY=/run/nvidia-mps");
	else
		(void)add(r, DOCTOR_OK, "MPS", "runs, its pipe is %.100s", f->mps_dir);
}

static void judge_gpu(const struct doctor_facts *f, struct doctor_report *r)
{
	bool wanted = strcmp(f->config.gpu_device, "auto") != 0 &&
		      strcmp(f->config.gpu_device, "none") != 0 &&
		      strcmp(f->config.gpu_device, "sim") != 0;

	if (!strcmp(f->config.gpu_device, "none") || !strcmp(f->config.gpu_device, "sim")) {
		(void)add(r, DOCTOR_OK, "GPU", "not asked for: [gpu] device = %s",
			  f->config.gpu_device);
		return;
	}
	if (!f->driver[0]) {
		if (wanted)
			fix(add(r, DOCTOR_FAILURE, "GPU", "no NVIDIA driver is loaded"),
			    "install the driver and `modprobe nvidia nvidia-uvm`, or [gpu] device "
			    "= none");
		else
			(void)add(r, DOCTOR_OK, "GPU", "none; skvcd codes on the CPU");
		return;
	}
	if (f->gpu_node_error)
		fix(add(r, DOCTOR_FAILURE, "GPU", "/dev/nvidiactl, /dev/nvidia-uvm: %s",
			strerror(f->gpu_node_error)),
		    "nvidia-modprobe -u -c 0; in a container: --gpus all; " DROP_IN
		    "DeviceAllow=char-nvidia-uvm rw");
	else if (f->gpus <= 0)
		fix(add(r, DOCTOR_FAILURE, "GPU", "CUDA finds none: %.120s", f->cuda_error),
		    "see nvidia-smi; in a container: --gpus all, and libcuda.so.1 of the host");
	else if (!f->gpu_library)
		fix(add(r, DOCTOR_FAILURE, "GPU", "%d, but %.180s is not there", f->gpus,
			f->gpu_library_path),
		    "install the package skvcd-cuda (or build with nvcc: make CUDA=1 install), or "
		    "[gpu] device = none");
	else
		(void)add(r, DOCTOR_OK, "GPU", "%d, %.100s", f->gpus, f->driver);
	judge_mps(f, r);
}

/* ---- clients ---- */

static void judge_socket(const struct doctor_facts *f, struct doctor_report *r, const char *check,
			 const char *path, int error)
{
	if (!error)
		(void)add(r, DOCTOR_OK, check, "%.108s: %s may connect", path, f->user);
	else if (error == ENOENT && !f->daemon_pid)
		fix(add(r, DOCTOR_NOTE, check, "%.108s is not there while no daemon runs", path),
		    "systemctl enable --now skvcd.socket");
	else if ((error == EACCES || error == EPERM) && !strcmp(f->socket_group, "root"))
		fix(add(r, DOCTOR_FAILURE, check, "%.108s: only root may connect (mode %04o)", path,
			f->socket_mode),
		    "run skvcd as a user and group of its own, as skvcd.service does (User=skvcd, "
		    "Group=skvcd), and add %s to that group",
		    f->user);
	else if (error == EACCES || error == EPERM)
		fix(add(r, DOCTOR_FAILURE, check,
			"%.108s: %s may not connect (mode %04o, group "
			"%s)",
			path, f->user, f->socket_mode, f->socket_group),
		    "usermod -aG %s %s, then log in again; in a container mount it and run with "
		    "that group: --group-add",
		    f->socket_group[0] ? f->socket_group : "skvcd", f->user);
	else
		fix(add(r, DOCTOR_FAILURE, check, "%.108s: %s", path, strerror(error)),
		    "systemctl restart skvcd.socket skvcd");
}

static void judge_namespaces(const struct doctor_facts *f, struct doctor_report *r)
{
	if (f->same_ipc == 0)
		fix(add(r, DOCTOR_WARNING, "IPC",
			"this is not the daemon's IPC namespace: CUDA "
			"IPC handles will not open"),
		    "start the engine's container with --ipc=host, or let it export its memory as "
		    "POSIX descriptors");
	else if (f->same_pid == 0)
		fix(add(r, DOCTOR_NOTE, "IPC",
			"this is not the daemon's pid namespace: it sees "
			"other pids than you"),
		    "nothing has to be done; --pid=host makes the log's pids yours");
	else if (f->same_ipc == 1)
		(void)add(r, DOCTOR_OK, "IPC", "the daemon's namespaces are ours");
}

static void judge_state_dir(const struct doctor_facts *f, struct doctor_report *r)
{
	if (f->state_dir_error == ENOENT)
		fix(add(r, DOCTOR_NOTE, "state", "%.150s is not there; skvcd makes it",
			f->config.state_dir),
		    "nothing has to be done; by hand: install -d -o skvcd -g skvcd -m 700 %.150s",
		    f->config.state_dir);
	else if (f->state_dir_error)
		fix(add(r, DOCTOR_NOTE, "state", "%.150s: %s", f->config.state_dir,
			strerror(f->state_dir_error)),
		    "sudo skvcctl doctor");
	else if (f->state_dir_mode & 022)
		fix(add(r, DOCTOR_FAILURE, "state", "others may write to %.150s (mode %04o)",
			f->config.state_dir, f->state_dir_mode),
		    "chmod 700 %.150s", f->config.state_dir);
	else
		(void)add(r, DOCTOR_OK, "state", "%.150s", f->config.state_dir);
}

void doctor_judge(const struct doctor_facts *f, struct doctor_report *ret)
{
	memset(ret, 0, sizeof(*ret));
	judge_config(f, ret);
	judge_daemon(f, ret);
	judge_kernel(f, ret);
	judge_uring(f, ret);
	judge_memlock(f, ret);
	judge_memory(f, ret);
	judge_restart(f, ret);
	judge_huge_pages(f, ret);
	judge_numa(f, ret);
	judge_nvme(f, ret);
	judge_gpu(f, ret);
	judge_state_dir(f, ret);
	judge_socket(f, ret, "socket", f->config.socket, f->socket_error);
	if (f->config.bus_socket[0])
		judge_socket(f, ret, "bus socket", f->config.bus_socket, f->bus_socket_error);
	judge_namespaces(f, ret);
}

/* ---- print ---- */

enum doctor_state doctor_worst(const struct doctor_report *r)
{
	enum doctor_state worst = DOCTOR_OK;

	for (unsigned i = 0; i < r->count; i++)
		if (r->line[i].state > worst)
			worst = r->line[i].state;
	return worst;
}

void doctor_print(const struct doctor_report *r, bool color, FILE *out)
{
	static const char *const colors[] = {
		[DOCTOR_OK] = "\033[32m",
		[DOCTOR_NOTE] = "\033[36m",
		[DOCTOR_WARNING] = "\033[33m",
		[DOCTOR_FAILURE] = "\033[1;31m",
	};
	unsigned count[DOCTOR_FAILURE + 1] = { 0 };

	for (unsigned i = 0; i < r->count; i++) {
		const struct doctor_line *l = &r->line[i];

		count[l->state]++;
		(void)fprintf(out, "%s%-8s%s %-14s %s\n", color ? colors[l->state] : "",
			      state_words[l->state], color ? "\033[0m" : "", l->check, l->says);
		if (l->fix[0])
			(void)fprintf(out, "%9s%14s  -> %s\n", "", "", l->fix);
	}
	(void)fprintf(out, "\n%u failed, %u warnings, %u notes, %u ok\n", count[DOCTOR_FAILURE],
		      count[DOCTOR_WARNING], count[DOCTOR_NOTE], count[DOCTOR_OK]);
}

int doctor_print_json(const struct doctor_report *r, FILE *out)
{
	static const char *const words[] = { "ok", "note", "warning", "failed" };
	cJSON *root = cJSON_CreateObject();
	cJSON *checks = cJSON_AddArrayToObject(root, "checks");

	(void)cJSON_AddStringToObject(root, "worst", words[doctor_worst(r)]);
	for (unsigned i = 0; i < r->count; i++) {
		cJSON *row = cJSON_CreateObject();

		(void)cJSON_AddStringToObject(row, "check", r->line[i].check);
		(void)cJSON_AddStringToObject(row, "state", words[r->line[i].state]);
		(void)cJSON_AddStringToObject(row, "says", r->line[i].says);
		(void)cJSON_AddStringToObject(row, "fix", r->line[i].fix);
		if (!cJSON_AddItemToArray(checks, row))
			cJSON_Delete(row);
	}
	return output_json(root, out);
}
