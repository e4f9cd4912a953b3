/* SPDX-License-Identifier: Apache-2.0 */
/*
 * main.c - skvcd: options, the order in which things start and stop, signals, and systemd's wishes.
 *
 * Start: configuration, socket (a second daemon ends here), secret, lane, control loop, bus, READY.
 * Stop: SIGTERM or SIGINT; nobody is accepted, sessions drain, then the lane, then everything is freed.
 *
 * Host memory is left to the next start: with systemd, which has the pool's memfd from the start on, and its index
 * when the lane has ended; and after SIGUSR2 with ourselves, loaded again.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <systemd/sd-daemon.h>
#include <systemd/sd-event.h>

#include "daemon/bus.h"
#include "daemon/config.h"
#include "daemon/control.h"
#include "daemon/fdstore.h"
#include "daemon/lane.h"
#include "daemon/listener.h"
#include "daemon/log.h"
#include "daemon/metrics.h"
#include "daemon/metrics_http.h"
#include "daemon/models.h"
#include "daemon/registry.h"
#include "daemon/reload.h"
#include "daemon/secret.h"
#include "daemon/util/clock.h"
#include "gpu/codec/codec.h"

#define MAIN_CONFIG SYSCONFDIR "/skvcd/skvcd.conf"
#define MAIN_ERR_BYTES 1024u
#define MAIN_OVERRIDES_MAX 64u
#define MAIN_STATUS_US 5000000u
#define MAIN_EX_CONFIG 78 /* sysexits.h; skvcd.service: no use in trying again */

struct options {
	const char *config; /* NULL: the default one, if it is there */
	const char *override[MAIN_OVERRIDES_MAX];
	unsigned overrides_count;
	int check_only;
	int debug;
};

/* Everything that is started, in order; main_stop() takes it down backwards from wherever it got. */
struct skvcd {
	const struct options *options;
	struct config config;
	struct fdstore given; /* by who started us; what nobody has taken over yet */
	struct fdstore next;  /* for ourselves, after a stop to be loaded again */
	int load_again, stopping;
	int left; /* a thread is still at work: nothing that it may use is freed */
	struct listener listener;
	struct registry *registry;
	struct lane *lane;
	sd_event *event;
	struct control *control;
	struct models *models;
	struct bus *bus;
	struct metrics_http *metrics; /* NULL: nobody is to be told */
	uint64_t watchdog_us;	      /* 0: systemd does not watch */
	uint64_t heartbeat;	      /* of the lane, when it was last seen to move */
};

static const char usage_text[] =
	"Usage: skvcd [OPTION]...\n"
	"A KV-cache memory tier for LLM inference: keeps blocks losslessly compressed in\n"
	"host memory and on NVMe, and gives them back byte-exact.\n"
	"\n"
	"  -c, --config FILE          configuration (default: " MAIN_CONFIG ",\n"
	"                             or the built-in defaults when that is missing)\n"
	"  -o SECTION.KEY=VALUE       override one key; may be repeated\n"
	"      --check-config         check the configuration and exit\n"
	"      --help-config          print every key with its default and range\n"
	"      --help-metrics         print every metric with its meaning\n"
	"  -d, --debug                log more\n"
	"  -h, --help                 this text\n"
	"  -V, --version              the version\n"
	"\n"
	"Exit status: 0 stopped in order, 1 failure, 2 wrong usage, 78 wrong configuration.\n"
	"See skvcd(8).\n";

/* Returns -1 to go on, or the exit status. */
static int parse_options(int argc, char **argv, struct options *o)
{
	enum { OPT_CHECK = 256, OPT_HELP_CONFIG, OPT_HELP_METRICS };
	static const struct option longs[] = {
		{ "config", required_argument, NULL, 'c' },
		{ "check-config", no_argument, NULL, OPT_CHECK },
		{ "help-config", no_argument, NULL, OPT_HELP_CONFIG },
		{ "help-metrics", no_argument, NULL, OPT_HELP_METRICS },
		{ "debug", no_argument, NULL, 'd' },
		{ "help", no_argument, NULL, 'h' },
		{ "version", no_argument, NULL, 'V' },
		{ NULL, 0, NULL, 0 },
	};
	int opt;

	while ((opt = getopt_long(argc, argv, "c:o:dhV", longs, NULL)) != -1) {
		switch (opt) { /* flat switch */
		case 'c':
			o->config = optarg;
			break;
		case 'o':
			if (o->overrides_count == MAIN_OVERRIDES_MAX) {
				(void)fprintf(stderr, "skvcd: at most %u overrides\n",
					      MAIN_OVERRIDES_MAX);
				return 2;
			}
			o->override[o->overrides_count++] = optarg;
			break;
		case OPT_CHECK:
			o->check_only = 1;
			break;
		case OPT_HELP_CONFIG:
			config_print_help(stdout);
			return 0;
		case OPT_HELP_METRICS:
			metrics_print_help(stdout);
			return 0;
		case 'd':
			o->debug = 1;
			break;
		case 'h':
			(void)fputs(usage_text, stdout);
			return 0;
		case 'V':
			(void)printf("skvcd " SKVCD_VERSION "\n");
			return 0;
		default:
			(void)fprintf(stderr, "Try 'skvcd --help'.\n");
			return 2;
		}
	}
	if (optind < argc) {
		(void)fprintf(stderr, "skvcd: unexpected argument: %s\nTry 'skvcd --help'.\n",
			      argv[optind]);
		return 2;
	}
	return -1;
}

static int load_config(const struct options *o, struct config *ret, char *err)
{
	const char *path = o->config ? o->config : MAIN_CONFIG;
	int r = 0;

	config_default(ret);
	if (o->config || !access(path, F_OK) || errno != ENOENT)
		r = config_load(path, ret, err, MAIN_ERR_BYTES);
	for (unsigned i = 0; !r && i < o->overrides_count; i++)
		r = config_set(ret, o->override[i], err, MAIN_ERR_BYTES);
	return r < 0 ? r : config_check(ret, err, MAIN_ERR_BYTES);
}

/* ---- while it runs ---- */

static int tell_of_config(void *user)
{
	const struct skvcd *d = user;

	return control_config_changed(d->control);
}

static int reload(void *user, char *ret_text, size_t text_bytes)
{
	static struct config next; /* large for a stack; control thread only */
	struct skvcd *d = user;
	char err[MAIN_ERR_BYTES] = "";
	struct reload result;
	int r = load_config(d->options, &next, err);

	if (r >= 0) {
		r = reload_try(&d->config, &next, tell_of_config, d, &result);
		if (r < 0)
			(void)snprintf(err, sizeof(err), "the data path is behind: try again");
	}
	if (r < 0) {
		log_event(LOG_EVENT_RELOAD_FAILED, LOG_LEVEL_ERR,
			  "not reloaded, the old configuration stays: %s", err);
		(void)snprintf(ret_text, text_bytes, "%s", err);
		return r;
	}
	log_set_debug(d->options->debug || (int)d->config.log_debug);
	log_event(LOG_EVENT_RELOADED, LOG_LEVEL_NOTICE,
		  "reloaded: %u keys changed, %u need a restart", result.changed, result.waiting);
	(void)snprintf(ret_text, text_bytes, "%s", result.text);
	return 0;
}

static int on_reload(sd_event_source *source, const struct signalfd_siginfo *si, void *user)
{
	struct skvcd *d = user;
	char text[RELOAD_TEXT_BYTES];

	(void)source;
	(void)si;
	(void)sd_notifyf(0, "RELOADING=1\nMONOTONIC_USEC=%" PRIu64, clock_now_ns() / 1000);
	(void)reload(d, text, sizeof(text));
	(void)sd_notify(0, "READY=1");
	return 0;
}

/* As a stop for the clients; systemd is told nothing but that it takes a moment. */
static int on_load_again(sd_event_source *source, const struct signalfd_siginfo *si, void *user)
{
	struct skvcd *d = user;

	(void)source;
	(void)si;
	if (d->stopping)
		return 0;
	log_line(LOG_LEVEL_NOTICE, "SIGUSR2: the program is loaded again");
	(void)sd_notifyf(0, "RELOADING=1\nMONOTONIC_USEC=%" PRIu64, clock_now_ns() / 1000);
	d->load_again = 1;
	control_stop(d->control);
	return 0;
}

static int on_signal(sd_event_source *source, const struct signalfd_siginfo *si, void *user)
{
	struct skvcd *d = user;

	(void)source;
	log_line(LOG_LEVEL_NOTICE, "%s: stopping", si->ssi_signo == SIGINT ? "SIGINT" : "SIGTERM");
	d->stopping = 1;
	d->load_again = 0;
	(void)sd_notify(0, "STOPPING=1\nSTATUS=Draining sessions");
	control_stop(d->control);
	return 0;
}

static int on_status(sd_event_source *source, uint64_t usec, void *user)
{
	struct skvcd *d = user;
	char line[256];

	(void)usec;
	control_status(d->control, line, sizeof(line));
	(void)sd_notifyf(0, "STATUS=%s", line);
	(void)sd_event_source_set_time_relative(source, MAIN_STATUS_US);
	return sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
}

/* The dog is fed for the lane's sake: this loop alone could run on while nothing is served. */
static int on_watchdog(sd_event_source *source, uint64_t usec, void *user)
{
	struct skvcd *d = user;
	uint64_t beat = lane_heartbeat(d->lane);

	(void)usec;
	if (beat != d->heartbeat)
		(void)sd_notify(0, "WATCHDOG=1");
	else
		log_event(LOG_EVENT_STUCK, LOG_LEVEL_ERR,
			  "the data path has not moved for %" PRIu64 " ms", d->watchdog_us / 2000);
	d->heartbeat = beat;
	(void)sd_event_source_set_time_relative(source, d->watchdog_us / 2);
	return sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
}

static int add_sources(struct skvcd *d)
{
	int r;

	r = sd_event_add_signal(d->event, NULL, SIGTERM, on_signal, d);
	if (r >= 0)
		r = sd_event_add_signal(d->event, NULL, SIGINT, on_signal, d);
	if (r >= 0)
		r = sd_event_add_signal(d->event, NULL, SIGHUP, on_reload, d);
	if (r >= 0)
		r = sd_event_add_signal(d->event, NULL, SIGUSR2, on_load_again, d);
	if (r >= 0 && getenv("NOTIFY_SOCKET"))
		r = sd_event_add_time_relative(d->event, NULL, CLOCK_MONOTONIC, MAIN_STATUS_US, 0,
					       on_status, d);
	if (r >= 0 && sd_watchdog_enabled(0, &d->watchdog_us) > 0)
		r = sd_event_add_time_relative(d->event, NULL, CLOCK_MONOTONIC, d->watchdog_us / 2,
					       0, on_watchdog, d);
	return r < 0 ? r : 0;
}

/* ---- start and stop ---- */

/* A session takes four fds here; the soft limit of 1024 is there for select(), which nobody calls. */
static void raise_limits(void)
{
	struct rlimit lim;

	if (!getrlimit(RLIMIT_NOFILE, &lim) && lim.rlim_cur < lim.rlim_max) {
		lim.rlim_cur = lim.rlim_max;
		(void)setrlimit(RLIMIT_NOFILE, &lim);
	}
}

/* Before there are threads: they inherit the mask, and signals come through the event loop only. */
static void block_signals(void)
{
	sigset_t set;

	(void)sigemptyset(&set);
	(void)sigaddset(&set, SIGTERM);
	(void)sigaddset(&set, SIGINT);
	(void)sigaddset(&set, SIGHUP);
	(void)sigaddset(&set, SIGUSR2);
	(void)sigprocmask(SIG_BLOCK, &set, NULL);
	(void)signal(SIGPIPE, SIG_IGN);
}

/* The control socket, from systemd or made here. */
static int open_socket(struct skvcd *d, char *err)
{
	int r = listener_open(d->config.socket, SOCK_SEQPACKET, d->config.socket_mode,
			      d->given.socket, &d->listener, err, MAIN_ERR_BYTES);

	if (r == 0)
		d->given.socket = -1;
	return r;
}

/* Before there is a second one. */
static void on_pool_refused(void *user)
{
	(void)user;
	fdstore_forget(FDSTORE_POOL);
	fdstore_settle();
}

/* The manager keeps the pool from now on, whatever comes; an index that he has is used up. */
static void keep_pool(const struct skvcd *d)
{
	fdstore_forget(FDSTORE_INDEX);
	if (d->config.host_persist)
		fdstore_keep(FDSTORE_POOL, lane_pool_fd(d->lane));
}

static int start_lane(struct skvcd *d, char *err)
{
	struct lane_restore restore = { .ns = registry_restore,
					.user = d->registry,
					.pool_refused = on_pool_refused };
	int r;

	if (d->config.host_persist) {
		restore.pool_fd = d->given.pool + 1;
		restore.index_fd = d->given.index + 1;
		d->given.pool = d->given.index = -1;
	} else {
		if (d->given.pool >= 0)
			on_pool_refused(d);
		fdstore_close(&d->given);
	}
	r = lane_start(&d->config, &restore, &d->lane, err, MAIN_ERR_BYTES);
	if (r == 0)
		keep_pool(d);
	return r;
}

static int start(struct skvcd *d, char *err)
{
	uint8_t secret[SECRET_BYTES];
	int r;

	(void)snprintf(err, MAIN_ERR_BYTES, "out of memory");
	r = fdstore_take(&d->given, err, MAIN_ERR_BYTES);
	if (r == 0)
		r = open_socket(d, err);
	if (r < 0)
		return r;
	r = secret_load(d->config.state_dir, secret, err, MAIN_ERR_BYTES);
	if (r < 0)
		return r;
	r = registry_new(&d->config, secret, &d->registry);
	explicit_bzero(secret, sizeof(secret));
	if (r < 0)
		return r;
	r = start_lane(d, err);
	if (r < 0)
		return r;
	r = sd_event_new(&d->event);
	if (r >= 0)
		r = control_new(d->event, &d->config, d->lane, d->registry, &d->listener,
				&d->control);
	if (r >= 0)
		r = models_new(d->event, &d->config, control_model_loaded, d->control, &d->models);
	if (r >= 0) {
		control_use_models(d->control, d->models);
		control_on_reload(d->control, reload, d);
		r = add_sources(d);
	}
	if (r < 0) {
		(void)snprintf(err, MAIN_ERR_BYTES, "event loop: %s", strerror(-r));
		return r;
	}
	r = bus_new(d->event, d->control, &d->bus, err, MAIN_ERR_BYTES);
	return r < 0 ? r : metrics_http_new(d->event, d->control, &d->metrics, err, MAIN_ERR_BYTES);
}

/* What lies in host memory is there for the next start, if somebody keeps it until then. */
static void save_lane(struct skvcd *d)
{
	uint64_t start_ns = clock_now_ns();
	int fd = -1, r;

	if (!d->config.host_persist || !(d->load_again || fdstore_is_there()))
		return;
	r = lane_save(d->lane, &fd);
	if (r < 0)
		log_line(LOG_LEVEL_WARNING,
			 "host memory will be empty at the next start: its index: %s",
			 strerror(-r));
	else
		log_line(LOG_LEVEL_NOTICE, "host memory: its index was written in %.3f s",
			 (double)(clock_now_ns() - start_ns) / 1e9);
	if (d->load_again) {
		d->next.pool = fcntl(lane_pool_fd(d->lane), F_DUPFD_CLOEXEC, 0);
		d->next.index = fd;
	} else if (fd >= 0) {
		fdstore_keep(FDSTORE_INDEX, fd);
		fdstore_settle(); /* when we are gone, he does not know whose it is */
		(void)close(fd);
	}
}

static void stop_lane(struct skvcd *d)
{
	struct mail mail = { .type = LANE_STOP, .value = 1 };
	struct timespec ms = { .tv_nsec = 1000000 };

	if (!d->lane)
		return;
	/* Full only while the lane is behind; it empties its box on every turn. */
	while (mailbox_send(lane_inbox(d->lane), &mail) == -EAGAIN)
		(void)nanosleep(&ms, NULL);
	save_lane(d);
	d->left = lane_leave(d->lane);
	if (d->left) /* a restart does not wait for what nobody will use */
		return;
	d->lane = lane_join(d->lane);
}

static void stop(struct skvcd *d)
{
	d->metrics = metrics_http_free(d->metrics);
	d->bus = bus_free(d->bus);
	models_stop(d->models);
	d->control = control_free(d->control);
	d->event = sd_event_unref(d->event);
	stop_lane(d); /* control watched its outbox, bus read its counters */
	if (!d->left) {
		d->registry = registry_free(d->registry);
		d->models = models_free(d->models); /* profiles borrowed them */
	}
	fdstore_close(&d->given);
	if (d->load_again) { /* who connects meanwhile waits */
		d->next.socket = d->listener.fd;
		d->listener.fd = -1;
		d->listener.made = 0;
	}
	listener_close(&d->listener);
}

static int run(struct skvcd *d)
{
	int r;

	log_event(LOG_EVENT_STARTED, LOG_LEVEL_NOTICE,
		  "skvcd " SKVCD_VERSION " serves on %s: pool %" PRIu64 " MiB, NVMe %s, codec %s "
		  "on the CPU (%s)",
		  d->config.socket, d->config.pool_bytes >> 20,
		  d->config.nvme_path[0] ? d->config.nvme_path : "none",
		  config_speculator_name(d->config.speculator), codec_isa_name());
	(void)sd_notify(0, "READY=1\nSTATUS=Serving");
	r = sd_event_loop(d->event);
	if (r < 0) {
		/* Sessions are open still, and their memory may be in use: nothing can be freed. */
		log_line(LOG_LEVEL_ERR, "event loop: %s", strerror(-r));
		_exit(1);
	}
	return 0;
}

/*
 * OpenBLAS, which profiles are fitted with, starts a thread for each core while the program is loaded, before
 * anybody could block signals for them: one of these would take our SIGTERM, and die of it with all of us.  It
 * reads this variable then, so the program is loaded once more.  Where that fails, we go on.
 */
static void reload_without_blas_threads(char **argv)
{
	static const char name[] = "OPENBLAS_NUM_THREADS";
	const char *is = getenv(name);
	char path[PATH_MAX];
	ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - 1);

	if ((is && !strcmp(is, "1")) || n <= 0 || setenv(name, "1", 1) < 0)
		return;
	path[n] = '\0';
	(void)execv(path, argv);
}

int main(int argc, char **argv)
{
	static struct skvcd d = { .listener = LISTENER_NONE,
				  .given = FDSTORE_NONE,
				  .next = FDSTORE_NONE }; /* the configuration alone is 16 KiB */
	static struct options options;			  /* a reload applies the overrides again */
	char err[MAIN_ERR_BYTES] = "";
	int r;

	reload_without_blas_threads(argv);
	r = parse_options(argc, argv, &options);
	if (r >= 0)
		return r;
	log_init(options.debug);
	if (load_config(&options, &d.config, err) < 0) {
		log_event(LOG_EVENT_START_FAILED, LOG_LEVEL_ERR, "%s", err);
		return MAIN_EX_CONFIG;
	}
	d.options = &options;
	log_set_debug(options.debug || (int)d.config.log_debug);
	if (options.check_only) {
		(void)printf("configuration is good\n");
		return 0;
	}
	raise_limits();
	block_signals();
	r = start(&d, err);
	if (r < 0) {
		log_event(LOG_EVENT_START_FAILED, LOG_LEVEL_ERR, "%s", err);
		stop(&d);
		return 1;
	}
	r = run(&d);
	stop(&d);
	log_event(LOG_EVENT_STOPPED, LOG_LEVEL_NOTICE, "stopped");
	if (!d.load_again && !d.left)
		return r;
	if (!d.load_again)
		_exit(r);
	r = fdstore_exec(&d.next, argv);
	log_line(LOG_LEVEL_ERR, "the program cannot be loaded again: %s", strerror(-r));
	return 1;
}
