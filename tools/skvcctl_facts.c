/* SPDX-License-Identifier: Apache-2.0 */
/*
 * skvcctl_facts.c - what the doctor sees of a machine: /proc, /sys, limits, a try of each thing that the
 * daemon will need.  Changes nothing that stays, and judges nothing.
 */
#include <ctype.h>
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <inttypes.h>
#include <linux/capability.h>
#include <linux/io_uring.h>
#include <pwd.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <systemd/sd-bus.h>
#include <unistd.h>

#include "tools/skvcctl_doctor.h"

#ifndef IORING_SETUP_COOP_TASKRUN
#define IORING_SETUP_COOP_TASKRUN (1u << 8)
#endif
#ifndef IORING_SETUP_SINGLE_ISSUER
#define IORING_SETUP_SINGLE_ISSUER (1u << 12)
#endif

#define DIRECT_BYTES 4096u

extern char **environ;

/* ---- small files ---- */

/* The first line without its end, or "". */
static int read_line(const char *path, char *ret, size_t ret_bytes)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
	ssize_t n;
	int r = errno;

	ret[0] = '\0';
	if (fd < 0)
		return -r;
	n = read(fd, ret, ret_bytes - 1);
	(void)close(fd);
	ret[n > 0 ? n : 0] = '\0';
	ret[strcspn(ret, "\n")] = '\0';
	return 0;
}

/* "key: value" or "key value" of a file with many of them, in bytes if it says kB. */
static uint64_t read_key(const char *path, const char *key)
{
	FILE *f = fopen(path, "re");
	uint64_t value = 0;
	char line[256];

	while (f && fgets(line, sizeof(line), f))
		if (!strncmp(line, key, strlen(key))) {
			value = strtoull(line + strlen(key), NULL, 10);
			if (strstr(line, " kB"))
				value <<= 10;
			break;
		}
	if (f)
		(void)fclose(f);
	return value;
}

/* ---- the configuration: the few keys that are asked for; what is wrong with it skvcd knows ---- */

/* Of several, as skvcd.conf(5) has them, the first; a size behind it is its own. */
static void take_nvme_path(struct doctor_config *c, const char *value)
{
	uint64_t bytes;
	char *blank;

	(void)snprintf(c->nvme_path, sizeof(c->nvme_path), "%.*s", (int)strcspn(value, ","), value);
	blank = strrchr(c->nvme_path, ' ');
	if (blank && !strchr(blank, '/') && skvcctl_parse_bytes(blank + 1, &bytes) == 0) {
		*blank = '\0';
		c->nvme_own_bytes = bytes;
	}
}

static void take_key(struct doctor_config *c, const char *section, const char *key,
		     const char *value)
{
	char name[96];

	(void)snprintf(name, sizeof(name), "%s.%s", section, key);
#define TEXT(key_, field)        \
	if (!strcmp(name, key_)) \
	(void)snprintf(c->field, sizeof(c->field), "%s", value)
	TEXT("daemon.socket", socket);
	TEXT("daemon.bus_socket", bus_socket);
	TEXT("daemon.state_dir", state_dir);
	TEXT("gpu.device", gpu_device);
#undef TEXT
	if (!strcmp(name, "nvme.path"))
		take_nvme_path(c, value);
	else if (!strcmp(name, "host.pool"))
		(void)skvcctl_parse_bytes(value, &c->pool_bytes);
	else if (!strcmp(name, "nvme.size"))
		(void)skvcctl_parse_bytes(value, &c->nvme_bytes);
	else if (!strcmp(name, "host.numa_node"))
		c->numa_node = (int)strtol(value, NULL, 10);
	else if (!strcmp(name, "host.persist"))
		c->no_persist = !strcmp(value, "no") || !strcmp(value, "0") ||
				!strcmp(value, "false") || !strcmp(value, "off");
	else if (!strcmp(name, "host.lock_memory"))
		c->lock_memory = !strcmp(value, "yes") || !strcmp(value, "1") ||
				 !strcmp(value, "true") || !strcmp(value, "on");
}

static char *trim(char *s)
{
	char *end;

	while (isspace((unsigned char)*s))
		s++;
	end = s + strlen(s);
	while (end > s && isspace((unsigned char)end[-1]))
		*--end = '\0';
	return s;
}

static void read_config(struct doctor_config *c, const char *path)
{
	char line[512], section[64] = "";
	FILE *f = fopen(path, "re");

	while (f && fgets(line, sizeof(line), f)) {
		char *s = trim(line), *equals, *comment = strstr(s, " ;");

		if (comment)
			*comment = '\0';
		equals = strchr(s, '=');
		if (*s == '[' && strchr(s, ']'))
			(void)snprintf(section, sizeof(section), "%.*s", (int)strcspn(s + 1, "]"),
				       s + 1);
		else if (*s != '#' && *s != ';' && equals) {
			*equals = '\0';
			take_key(c, section, trim(s), trim(equals + 1));
		}
	}
	if (f)
		(void)fclose(f);
}

/* Beside us, as in a build tree, or in sbin beside our bin; else wherever $PATH has it. */
static const char *find_skvcd(char *buf, size_t buf_bytes)
{
	static const char *const places[] = { "skvcd", "../sbin/skvcd" };
	char self[PATH_MAX];
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);

	self[n > 0 ? n : 0] = '\0';
	for (size_t i = 0; n > 0 && i < sizeof(places) / sizeof(places[0]); i++) {
		int dir = (int)(strrchr(self, '/') - self);

		if (snprintf(buf, buf_bytes, "%.*s/%s", dir, self, places[i]) < (int)buf_bytes &&
		    !access(buf, X_OK))
			return buf;
	}
	return "skvcd";
}

/* The last line that skvcd --check-config writes when it does not like the file. */
static void check_config(struct doctor_config *c)
{
	char program[PATH_MAX], out[sizeof(c->wrong)] = "";
	char *const argv[] = { (char *)"skvcd", (char *)"--check-config", (char *)"-c", c->file,
			       NULL };
	posix_spawn_file_actions_t actions;
	int pipes[2], status = 0;
	size_t count = 0;
	ssize_t n;
	pid_t pid;

	if (!c->file[0] || pipe2(pipes, O_CLOEXEC) < 0)
		return;
	(void)posix_spawn_file_actions_init(&actions);
	(void)posix_spawn_file_actions_adddup2(&actions, pipes[1], STDERR_FILENO);
	(void)posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
	if (posix_spawnp(&pid, find_skvcd(program, sizeof(program)), &actions, NULL, argv,
			 environ) != 0)
		pid = -1;
	(void)posix_spawn_file_actions_destroy(&actions);
	(void)close(pipes[1]);
	while (pid > 0 && count + 1 < sizeof(out) &&
	       (n = read(pipes[0], out + count, sizeof(out) - 1 - count)) > 0)
		count += (size_t)n;
	(void)close(pipes[0]);
	if (pid < 0 || waitpid(pid, &status, 0) != pid || !WIFEXITED(status) ||
	    !WEXITSTATUS(status) || strncmp(out, "skvcd: error: ", 14) != 0)
		return;
	out[strcspn(out, "\n")] = '\0';
	(void)snprintf(c->wrong, sizeof(c->wrong), "%s", out + 14);
}

static void look_config(struct doctor_config *c, const struct skvcctl_source *source,
			const char *path)
{
	*c = (struct doctor_config){
		.pool_bytes = 1ull << 30,
		.nvme_bytes = 16ull << 30,
		.numa_node = -1,
		.lock_memory = true,
		.gpu_device = "auto",
		.socket = "/run/skvcd/skvcd.sock",
		.bus_socket = SKVCCTL_DEFAULT_BUS,
		.state_dir = "/var/lib/skvcd",
	};
	if (path || !access(DOCTOR_CONFIG, F_OK)) {
		(void)snprintf(c->file, sizeof(c->file), "%s", path ? path : DOCTOR_CONFIG);
		read_config(c, c->file);
		check_config(c);
	}
	if (strcmp(source->path, SKVCCTL_DEFAULT_BUS) != 0)
		(void)snprintf(c->bus_socket, sizeof(c->bus_socket), "%s", source->path);
}

/* ---- the daemon ---- */

static void look_daemon(struct doctor_facts *f, const struct skvcctl_source *source)
{
	struct skvcctl_picture p = { 0 };
	char path[160], pid[16];

	f->bus = skvcctl_fetch(source, SKVCCTL_GET_VERSION, &p, f->bus_error, sizeof(f->bus_error));
	if (f->bus == SKVCCTL_OK) {
		(void)snprintf(f->health, sizeof(f->health), "%s", p.health);
		(void)snprintf(f->version, sizeof(f->version), "%s", p.version);
		skvcctl_picture_deinit(&p);
	}
	/* Whoever holds the lock wrote it; a file of a daemon that is gone names nobody. */
	(void)snprintf(path, sizeof(path), "%s.lock", f->config.socket);
	if (!read_line(path, pid, sizeof(pid)))
		f->daemon_pid = (int)strtol(pid, NULL, 10);
	(void)snprintf(path, sizeof(path), "/proc/%d/stat", f->daemon_pid);
	if (f->daemon_pid && access(path, F_OK) != 0)
		f->daemon_pid = 0;
}

/* ---- the kernel ---- */

static int try_uring(unsigned flags)
{
	struct io_uring_params params = { .flags = flags };
	long fd = syscall(SYS_io_uring_setup, 8, &params);

	if (fd < 0)
		return errno;
	(void)close((int)fd);
	return 0;
}

static void look_kernel(struct doctor_facts *f)
{
	struct utsname name;
	char text[16];

	if (!uname(&name)) {
		(void)snprintf(f->kernel, sizeof(f->kernel), "%s", name.release);
		(void)sscanf(name.release, "%u.%u", &f->kernel_major, &f->kernel_minor);
	}
	f->uring_error = try_uring(0);
	f->uring_modern_error = try_uring(IORING_SETUP_COOP_TASKRUN | IORING_SETUP_SINGLE_ISSUER);
	f->uring_disabled = -1;
	if (!read_line("/proc/sys/kernel/io_uring_disabled", text, sizeof(text)))
		f->uring_disabled = (int)strtol(text, NULL, 10);
}

/* ---- memory ---- */

static bool has_service(void)
{
	static const char *const units[] = { "/etc/systemd/system/skvcd.service",
					     "/usr/local/lib/systemd/system/skvcd.service",
					     "/usr/lib/systemd/system/skvcd.service",
					     "/lib/systemd/system/skvcd.service" };
	bool found = false;

	for (size_t i = 0; i < sizeof(units) / sizeof(units[0]); i++)
		found |= !access(units[i], F_OK);
	return found && !access("/run/systemd/system", F_OK);
}

/* Descriptors that systemd keeps over a restart of the unit; -1: it does not say. */
static int store_fds(void)
{
	sd_bus_error e = SD_BUS_ERROR_NULL;
	sd_bus *bus = NULL;
	uint32_t most = 0;
	int r = sd_bus_open_system(&bus);

	if (r >= 0)
		r = sd_bus_get_property_trivial(bus, "org.freedesktop.systemd1",
						"/org/freedesktop/systemd1/unit/skvcd_2eservice",
						"org.freedesktop.systemd1.Service",
						"FileDescriptorStoreMax", &e, 'u', &most);
	sd_bus_error_free(&e);
	sd_bus_flush_close_unref(bus);
	return r < 0 ? -1 : most < INT32_MAX ? (int)most : INT32_MAX;
}

static void look_memlock(struct doctor_facts *f)
{
	char path[64], line[256];
	FILE *limits;
	struct rlimit own;
	uint64_t caps;

	f->service = has_service();
	f->store_fds = f->service ? store_fds() : -1;
	f->memlock_bytes = UINT64_MAX;
	if (!getrlimit(RLIMIT_MEMLOCK, &own) && own.rlim_cur != RLIM_INFINITY)
		f->memlock_bytes = own.rlim_cur;
	(void)snprintf(path, sizeof(path), "/proc/%d/limits", f->daemon_pid);
	limits = f->daemon_pid ? fopen(path, "re") : NULL;
	while (limits && fgets(line, sizeof(line), limits)) {
		if (strncmp(line, "Max locked memory", 17) != 0)
			continue;
		f->memlock_of_daemon = true;
		f->memlock_bytes = strstr(line, "unlimited") ? UINT64_MAX
							     : strtoull(line + 17, NULL, 10);
	}
	if (limits)
		(void)fclose(limits);
	(void)snprintf(path, sizeof(path), "/proc/%d/status",
		       f->memlock_of_daemon ? f->daemon_pid : getpid());
	f->locked_bytes = f->memlock_of_daemon ? read_key(path, "VmLck:") : 0;
	limits = fopen(path, "re");
	while (limits && fgets(line, sizeof(line), limits))
		if (sscanf(line, "CapEff: %" SCNx64, &caps) == 1)
			f->memlock_privileged = caps >> CAP_IPC_LOCK & 1;
	if (limits)
		(void)fclose(limits);
}

static void look_memory(struct doctor_facts *f)
{
	char path[80];
	DIR *nodes = opendir("/sys/devices/system/node");
	const struct dirent *e;

	look_memlock(f);
	f->memory_bytes = read_key("/proc/meminfo", "MemTotal:");
	f->available_bytes = read_key("/proc/meminfo", "MemAvailable:");
	(void)read_line("/sys/kernel/mm/transparent_hugepage/enabled", f->huge_pages,
			sizeof(f->huge_pages));
	(void)read_line("/sys/kernel/mm/transparent_hugepage/shmem_enabled", f->shared_huge_pages,
			sizeof(f->shared_huge_pages));
	while (nodes && (e = readdir(nodes)) != NULL)
		f->nodes += !strncmp(e->d_name, "node", 4) && isdigit((unsigned char)e->d_name[4]);
	if (nodes)
		(void)closedir(nodes);
	if (!f->nodes)
		f->nodes = 1;
	(void)snprintf(path, sizeof(path), "/sys/devices/system/node/node%d", f->config.numa_node);
	f->node_exists = f->config.numa_node == 0 || !access(path, F_OK);
}

/* ---- NVMe ---- */

/* A file without a name, gone when it is closed; in the directory that the daemon will write to. */
static int try_direct(const char *dir)
{
	void *page = NULL;
	int fd = open(dir, O_RDWR | O_TMPFILE | O_DIRECT | O_CLOEXEC, 0600);
	int r = 0;

	if (fd < 0)
		return errno;
	if (posix_memalign(&page, DIRECT_BYTES, DIRECT_BYTES) != 0) {
		(void)close(fd);
		return ENOMEM;
	}
	memset(page, 0, DIRECT_BYTES);
	if (pwrite(fd, page, DIRECT_BYTES, 0) != (ssize_t)DIRECT_BYTES)
		r = errno;
	free(page);
	(void)close(fd);
	return r;
}

static void look_nvme(struct doctor_facts *f)
{
	const char *path = f->config.nvme_path;
	const char *slash = strrchr(path, '/');
	struct statvfs fs;
	struct stat st;

	if (!path[0])
		return;
	if (f->config.nvme_own_bytes)
		f->config.nvme_bytes = f->config.nvme_own_bytes;
	(void)snprintf(f->nvme_dir, sizeof(f->nvme_dir), "%.*s",
		       slash && slash > path ? (int)(slash - path) : 1, slash ? path : ".");
	if (access(f->nvme_dir, W_OK | X_OK) < 0)
		f->nvme_dir_error = errno;
	f->nvme_direct_error = f->nvme_dir_error ? 0 : try_direct(f->nvme_dir);
	if (!statvfs(f->nvme_dir, &fs))
		f->nvme_free_bytes = (uint64_t)fs.f_bavail * fs.f_frsize;
	if (!stat(path, &st))
		f->nvme_has_bytes = (uint64_t)st.st_blocks * 512;
}

/* ---- GPU ---- */

static void look_cuda(struct doctor_facts *f)
{
	void *lib = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
	int (*init)(unsigned) = NULL;
	int (*count)(int *) = NULL;
	int r;

	f->gpus = -1;
	if (!lib) {
		(void)snprintf(f->cuda_error, sizeof(f->cuda_error), "%s", dlerror());
		return;
	}
	*(void **)&init = dlsym(lib, "cuInit");
	*(void **)&count = dlsym(lib, "cuDeviceGetCount");
	r = init && count ? init(0) : -1;
	if (!r)
		r = count(&f->gpus);
	if (r)
		(void)snprintf(f->cuda_error, sizeof(f->cuda_error), "cuInit: error %d", r);
	/* Never closed: the driver leaves threads behind. */
}

static void look_mps(struct doctor_facts *f)
{
	static const char *const dirs[] = { "/run/nvidia-mps", "/tmp/nvidia-mps" };
	const char *own = getenv("CUDA_MPS_PIPE_DIRECTORY");
	char path[200];

	for (size_t i = 0; i <= sizeof(dirs) / sizeof(dirs[0]); i++) {
		const char *dir = !i ? own : dirs[i - 1];

		if (!dir)
			continue;
		(void)snprintf(path, sizeof(path), "%.120s/control", dir);
		if (access(path, F_OK) != 0)
			continue;
		(void)snprintf(f->mps_dir, sizeof(f->mps_dir), "%s", dir);
		f->mps = !strncmp(dir, "/tmp/", 5) ? DOCTOR_MPS_PRIVATE : DOCTOR_MPS_SHARED;
		return;
	}
}

static int try_node(const char *path)
{
	return access(path, R_OK | W_OK) < 0 ? errno : 0;
}

static void look_gpu(struct doctor_facts *f)
{
	char self[PATH_MAX];
	ssize_t n;

	if (read_line("/proc/driver/nvidia/version", f->driver, sizeof(f->driver)) < 0)
		return;
	f->gpu_node_error = try_node("/dev/nvidiactl");
	if (!f->gpu_node_error)
		f->gpu_node_error = try_node("/dev/nvidia-uvm");
	if (!f->gpu_node_error)
		look_cuda(f);
	n = readlink("/proc/self/exe", self, sizeof(self) - 1);
	self[n > 0 ? n : 0] = '\0';
	(void)snprintf(f->gpu_library_path, sizeof(f->gpu_library_path),
		       "%.*s../lib/skvcd/libskvcd-cuda.so",
		       n > 0 ? (int)(strrchr(self, '/') - self + 1) : 0, self);
	if (access(f->gpu_library_path, R_OK) != 0)
		(void)snprintf(f->gpu_library_path, sizeof(f->gpu_library_path), "%s",
			       SKVCD_LIBDIR "/skvcd/libskvcd-cuda.so");
	f->gpu_library = !access(f->gpu_library_path, R_OK);
	look_mps(f);
}

/* ---- clients ---- */

/* Connecting is not tried: the daemon would count a client that says nothing. */
static int try_socket(const char *path, struct doctor_facts *f)
{
	const struct group *group;
	struct stat st;
	int r;

	if (stat(path, &st) < 0)
		return errno;
	group = getgrgid(st.st_gid);
	(void)snprintf(f->socket_group, sizeof(f->socket_group), "%s", group ? group->gr_name : "");
	f->socket_mode = st.st_mode & 07777;
	r = access(path, W_OK) < 0 ? errno : 0;
	return !r && !S_ISSOCK(st.st_mode) ? ENOTSOCK : r;
}

static int same_namespace(int pid, const char *which)
{
	char path[64], ours[64], theirs[64];
	ssize_t n, m;

	(void)snprintf(path, sizeof(path), "/proc/self/ns/%s", which);
	n = readlink(path, ours, sizeof(ours));
	(void)snprintf(path, sizeof(path), "/proc/%d/ns/%s", pid, which);
	m = readlink(path, theirs, sizeof(theirs));
	if (!pid || n <= 0 || m <= 0)
		return -1;
	return n == m && !memcmp(ours, theirs, (size_t)n);
}

static void look_clients(struct doctor_facts *f)
{
	const struct passwd *user = getpwuid(geteuid());
	struct stat st;

	(void)snprintf(f->user, sizeof(f->user), "%s", user ? user->pw_name : "this user");
	f->root = !geteuid();
	/* The bus socket last: both belong to the same group. */
	f->socket_error = try_socket(f->config.socket, f);
	f->bus_socket_error = f->config.bus_socket[0] ? try_socket(f->config.bus_socket, f) : 0;
	f->same_ipc = same_namespace(f->daemon_pid, "ipc");
	f->same_pid = same_namespace(f->daemon_pid, "pid");
	if (stat(f->config.state_dir, &st) < 0)
		f->state_dir_error = errno;
	else
		f->state_dir_mode = st.st_mode & 07777;
}

void doctor_look(const struct skvcctl_source *source, const char *config, struct doctor_facts *ret)
{
	memset(ret, 0, sizeof(*ret));
	look_config(&ret->config, source, config);
	look_daemon(ret, source);
	look_kernel(ret);
	look_memory(ret);
	look_nvme(ret);
	look_gpu(ret);
	look_clients(ret);
}
