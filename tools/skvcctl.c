/* SPDX-License-Identifier: Apache-2.0 */
/*
 * skvcctl.c - options and commands.  Fetches one picture of the daemon per command and prints it.
 */
#include "tools/skvcctl.h"
#include "tools/output.h"
#include "tools/skvcctl_change.h"
#include "tools/skvcctl_doctor.h"
#include "tools/skvcctl_explain.h"
#include "tools/skvcctl_plan.h"
#include "tools/skvcctl_top.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const char usage_text[] =
	"Usage: skvcctl [OPTION]... COMMAND\n"
	"Look at a running skvcd, and manage it.\n"
	"\n"
	"  stats                  one screen: capacity, hits, traffic, latencies\n"
	"  top                    the same, live: tiers, traffic, tenants, sessions\n"
	"  namespaces             what is cached, by model, geometry and tenant\n"
	"  profiles               what namespaces are compressed with, and how well\n"
	"  models, sessions, tenants\n"
	"  explain [WORD]         what a reason or a counter means, and what to do\n"
	"  explain KEY[:GROUP]    where a block is (root and the daemon's own user)\n"
	"  plan, explain --plan   what was measured, and how blocks are coded for it\n"
	"  ping, version          does it answer; which versions are these\n"
	"  doctor                 is this machine fit for skvcd, and how to mend it\n"
	"As root or the daemon's own user:\n"
	"  quota TENANT SIZE      until a reload; none: no limit\n"
	"  evict tenant NAME, evict namespace ID, evict all\n"
	"                         drop blocks that nobody uses at the moment\n"
	"  drain [wait|off]       take no new sessions; wait until none is left; go on\n"
	"  reload                 read the configuration again\n"
	"  model add NAME FOLDER, model remove NAME\n"
	"\n"
	"  -b, --bus PATH         its bus socket ($SKVC_BUS, else " SKVCCTL_DEFAULT_BUS ")\n"
	"      --system           ask through the system bus instead\n"
	"  -j, --json             for programs; the keys do not change\n"
	"      --prometheus       stats: as Prometheus reads them\n"
	"  -w, --watch[=SECS]     print again every SECS seconds (2)\n"
	"  -c, --config FILE      doctor: what the daemon runs with\n"
	"  -h, --help, -V, --version\n"
	"\n"
	"Exit status: 0 done, 1 failure, 2 wrong usage, 3 no daemon answers there.\n";

struct options {
	struct skvcctl_source source;
	bool json;
	bool prometheus;
	bool plan;	    /* explain */
	const char *config; /* doctor; NULL: the default one */
	unsigned watch_s;   /* 0: once */
};

struct command {
	const char *name;
	unsigned what;
	void (*print)(const struct skvcctl_picture *p, FILE *out);
};

static void print_ping(const struct skvcctl_picture *p, FILE *out)
{
	char ns[16];

	(void)fprintf(out, "skvcd %s answers in %s; health: %s\n", p->version,
		      skvcctl_format_ns(p->ping_ns, ns), p->health);
}

static void print_version(const struct skvcctl_picture *p, FILE *out)
{
	(void)fprintf(out, "skvcctl " SKVCD_VERSION "\nskvcd %s\n", p->version);
}

static const struct command commands[] = {
	{ "stats", SKVCCTL_GET_ALL, skvcctl_print_stats },
	{ "namespaces", SKVCCTL_GET_NAMESPACES, skvcctl_print_namespaces },
	{ "profiles", SKVCCTL_GET_PROFILES, skvcctl_print_profiles },
	{ "sessions", SKVCCTL_GET_SESSIONS, skvcctl_print_sessions },
	{ "tenants", SKVCCTL_GET_TENANTS, skvcctl_print_tenants },
	{ "models", SKVCCTL_GET_MODELS, skvcctl_print_models },
	{ "plan", SKVCCTL_GET_PLAN, skvcctl_print_plan },
	{ "ping", SKVCCTL_GET_VERSION, print_ping },
	{ "version", SKVCCTL_GET_VERSION, print_version },
};

static int usage_error(const char *what, const char *about)
{
	(void)fprintf(stderr, "skvcctl: %s%s\nTry 'skvcctl --help'.\n", what, about);
	return SKVCCTL_USAGE;
}

static int parse_watch(const char *arg, unsigned *ret_s)
{
	char *end;
	unsigned long s;

	if (!arg) {
		*ret_s = 2;
		return 0;
	}
	errno = 0;
	s = strtoul(arg, &end, 10);
	if (errno || *end || end == arg || arg[0] == '-' || !s || s > 3600)
		return -EINVAL;
	*ret_s = (unsigned)s;
	return 0;
}

/* Returns -1 to go on, or the exit status. */
static int parse_options(int argc, char **argv, struct options *o)
{
	enum { OPT_SYSTEM = 256, OPT_PROMETHEUS, OPT_PLAN };
	static const struct option longs[] = {
		{ "bus", required_argument, NULL, 'b' },
		{ "config", required_argument, NULL, 'c' },
		{ "system", no_argument, NULL, OPT_SYSTEM },
		{ "json", no_argument, NULL, 'j' },
		{ "prometheus", no_argument, NULL, OPT_PROMETHEUS },
		{ "plan", no_argument, NULL, OPT_PLAN },
		{ "watch", optional_argument, NULL, 'w' },
		{ "help", no_argument, NULL, 'h' },
		{ "version", no_argument, NULL, 'V' },
		{ NULL, 0, NULL, 0 },
	};
	int opt;

	while ((opt = getopt_long(argc, argv, "b:c:jw::hV", longs, NULL)) != -1) {
		switch (opt) { /* flat switch */
		case 'b':
			o->source.path = optarg;
			break;
		case 'c':
			o->config = optarg;
			break;
		case OPT_SYSTEM:
			o->source.system = true;
			break;
		case OPT_PROMETHEUS:
			o->prometheus = true;
			break;
		case OPT_PLAN:
			o->plan = true;
			break;
		case 'j':
			o->json = true;
			break;
		case 'w':
			if (parse_watch(optarg, &o->watch_s) < 0)
				return usage_error("--watch takes 1 to 3600 seconds, not ", optarg);
			break;
		case 'h':
			(void)fputs(usage_text, stdout);
			return SKVCCTL_OK;
		case 'V':
			(void)printf("skvcctl " SKVCD_VERSION "\n");
			return SKVCCTL_OK;
		default:
			(void)fprintf(stderr, "Try 'skvcctl --help'.\n");
			return SKVCCTL_USAGE;
		}
	}
	return -1;
}

static enum skvcctl_exit print_metrics(const struct options *o)
{
	char err[SKVCCTL_ERR_BYTES] = "", *text = NULL;
	enum skvcctl_exit e = skvcctl_metrics(&o->source, &text, err, sizeof(err));

	if (e == SKVCCTL_OK)
		(void)fputs(text, stdout);
	else
		(void)fprintf(stderr, "skvcctl: %s\n", err);
	free(text);
	return output_end() < 0 ? SKVCCTL_FAILURE : e;
}

static enum skvcctl_exit run_once(const struct options *o, const struct command *command,
				  bool again)
{
	struct skvcctl_picture p = { 0 };
	char err[SKVCCTL_ERR_BYTES] = "";
	enum skvcctl_exit e;

	e = skvcctl_fetch(&o->source, command->what, &p, err, sizeof(err));
	if (e != SKVCCTL_OK) {
		/* What can be said without a daemon is said. */
		if (command->print == print_version && !o->json)
			(void)printf("skvcctl " SKVCD_VERSION "\n");
		(void)fflush(stdout);
		(void)fprintf(stderr, "skvcctl: %s\n", err);
		return e;
	}
	if (again && isatty(STDOUT_FILENO))
		(void)fputs("\033[H\033[J", stdout);
	if (!o->json)
		command->print(&p, stdout);
	else if (skvcctl_print_json(&p, command->what, stdout) < 0)
		e = SKVCCTL_FAILURE;
	skvcctl_picture_deinit(&p);
	return output_end() < 0 ? SKVCCTL_FAILURE : e;
}

static int run(const struct options *o, const struct command *command)
{
	struct timespec pause = { .tv_sec = (time_t)o->watch_s };
	enum skvcctl_exit e;

	e = run_once(o, command, o->watch_s > 0);
	while (e == SKVCCTL_OK && o->watch_s) {
		(void)nanosleep(&pause, NULL);
		if (!o->json && !isatty(STDOUT_FILENO))
			(void)printf("\n");
		e = run_once(o, command, true);
	}
	return (int)e;
}

static int doctor(const struct options *o)
{
	static struct doctor_facts facts;
	static struct doctor_report report;

	doctor_look(&o->source, o->config, &facts);
	doctor_judge(&facts, &report);
	if (o->json && doctor_print_json(&report, stdout) < 0)
		return SKVCCTL_FAILURE;
	if (!o->json)
		doctor_print(&report, isatty(STDOUT_FILENO) && !getenv("NO_COLOR"), stdout);
	if (output_end() < 0)
		return SKVCCTL_FAILURE;
	return doctor_worst(&report) == DOCTOR_FAILURE ? SKVCCTL_FAILURE : SKVCCTL_OK;
}

static int explain_key(const struct options *o, const char *key, uint32_t group)
{
	static struct skvcctl_found found[SKVCCTL_FOUND_MAX];
	struct skvcctl_picture p = { 0 };
	char err[SKVCCTL_ERR_BYTES] = "";
	size_t count;
	enum skvcctl_exit e = skvcctl_find(&o->source, key, group, found, &count, err, sizeof(err));

	if (e == SKVCCTL_OK)
		e = skvcctl_fetch(&o->source, SKVCCTL_GET_PLAN, &p, err, sizeof(err));
	if (e == SKVCCTL_OK)
		skvcctl_print_found(&p, found, count, stdout);
	else
		(void)fprintf(stderr, "skvcctl: %s\n", err);
	skvcctl_picture_deinit(&p);
	return output_end() < 0 ? SKVCCTL_FAILURE : (int)e;
}

/* word: NULL, all that was refused so far. */
static int explain(const struct options *o, const char *word)
{
	struct skvcctl_picture p = { 0 };
	char err[SKVCCTL_ERR_BYTES] = "", key[65];
	enum skvcctl_exit e;
	uint32_t group;

	if (word && skvcctl_parse_key(word, key, &group))
		return explain_key(o, key, group);
	e = skvcctl_fetch(&o->source, SKVCCTL_GET_STATS | SKVCCTL_GET_TEXTS, &p, err, sizeof(err));
	if (e == SKVCCTL_OK && skvcctl_explain(&p, word, stdout) < 0) {
		(void)snprintf(err, sizeof(err),
			       "%.64s: no such reason or counter; skvcctl stats --json has all",
			       word);
		e = SKVCCTL_FAILURE;
	}
	if (e != SKVCCTL_OK)
		(void)fprintf(stderr, "skvcctl: %s\n", err);
	skvcctl_picture_deinit(&p);
	return output_end() < 0 ? SKVCCTL_FAILURE : (int)e;
}

int main(int argc, char **argv)
{
	static char plan[] = "plan";
	struct options o = { .source = { .path = getenv("SKVC_BUS") } };
	int r;

	if (!o.source.path || !o.source.path[0])
		o.source.path = SKVCCTL_DEFAULT_BUS;
	r = parse_options(argc, argv, &o);
	if (r >= 0)
		return r;
	if (optind == argc)
		return usage_error("a command is missing", "");
	if (o.plan && (strcmp(argv[optind], "explain") != 0 || argc - optind > 1))
		return usage_error("--plan is for explain, by itself", "");
	if (o.plan)
		argv[optind] = plan;
	r = skvcctl_change(&o.source, argc - optind, argv + optind);
	if (r >= 0)
		return r;
	if (!strcmp(argv[optind], "explain") && argc - optind <= 2)
		return explain(&o, argv[optind + 1]);
	if (optind + 1 < argc)
		return usage_error("one command at a time, not also ", argv[optind + 1]);
	if (!strcmp(argv[optind], "doctor"))
		return doctor(&o);
	if (!strcmp(argv[optind], "top") && !o.json && !o.prometheus)
		return skvcctl_top(&o.source, o.watch_s ? o.watch_s : 1, o.watch_s > 0);
	if (o.prometheus && (o.json || o.watch_s || strcmp(argv[optind], "stats") != 0))
		return usage_error("--prometheus is for stats, by itself", "");
	if (o.prometheus)
		return (int)print_metrics(&o);
	for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++)
		if (!strcmp(commands[i].name, argv[optind]))
			return run(&o, &commands[i]);
	return usage_error("unknown command: ", argv[optind]);
}
