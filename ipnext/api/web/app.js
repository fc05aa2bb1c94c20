// The page: shows /v1/overview, and reads it again when the stream of events says that something changed. The stream is
// closed while the page is hidden; without a stream it polls, less and less often while nothing answers. A part of the page
// is rebuilt only when its facts changed, so that selections and focus survive. Text goes into the page as text only.
"use strict";

const REST_MS = 1500; // between two readings
const IDLE_MS = 60000; // the page is read so often although nothing was heard
const MOST_BACKOFF_MS = 60000;
const TIMEOUT_MS = 15000;
const HIDDEN_MS = 5000; // a page that is hidden for longer asks for nothing
const PAGE_SIZE = 25;
const GOOD = new Set(["serving", "done", "ready", "running-replica", "True"]);
const BAD = new Set(["refused", "failed", "rolled_back", "False"]);
const BUSY = new Set(["running", "rolling_out", "starting", "draining"]);
const shown = new Map();
const view = { search: "", owner: "", ready: "", after: null, before: [] };

function el(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return node;
}

function words(text) {
  return String(text).replaceAll("_", " ");
}

function badge(text, kind) {
  return el("span", { class: `badge ${kind}` }, words(text));
}

function kindOf(state) {
  if (GOOD.has(state)) return "good";
  if (BAD.has(state)) return "bad";
  return BUSY.has(state) ? "busy" : "";
}

function percent(fraction) {
  const value = fraction * 100;
  return `${value >= 10 || value === 0 ? Math.round(value) : value.toFixed(1)}%`;
}

// Nothing but zero is shown as zero: two digits of what is small.
function amount(value) {
  const size = Math.abs(value);
  if (size > 0 && size < 1e-6) return value > 0 ? "<0.000001" : ">-0.000001";
  return Number(value).toLocaleString("en", size > 0 && size < 0.1 ? { maximumSignificantDigits: 2 } : { maximumFractionDigits: 2 });
}

function ago(iso) {
  const seconds = Math.max(0, Math.round((Date.now() - Date.parse(iso)) / 1000));
  if (seconds < 60) return `${seconds} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ago`;
  return `${Math.floor(seconds / 86400)} d ago`;
}

function time(iso) {
  return el("time", { datetime: iso, title: new Date(iso).toLocaleString() }, ago(iso));
}

function chip(generation) {
  return el("span", { class: `chip gen-${generation % 6}`, "aria-hidden": "true" });
}

function table(heads, rows) {
  const head = el("tr", {}, heads.map((text) => el("th", { scope: "col" }, text)));
  return el("div", { class: "scroll" }, el("table", {}, el("thead", {}, head), el("tbody", {}, rows)));
}

function cell(content, kind) {
  return el("td", { class: kind }, ...[content].flat(Infinity));
}

function trafficBar(region, shares) {
  const text = shares.map((s) => `generation ${s.generation} in ${s.to} ${percent(s.fraction)}`).join(", ");
  const bar = el("div", { class: "bar", role: "img", "aria-label": `${region}: ${text || "no traffic"}`, title: text });
  for (const share of shares) {
    const piece = el("span", { class: `gen-${share.generation % 6}` }, `g${share.generation} in ${share.to} ${percent(share.fraction)}`);
    piece.style.width = `${share.fraction * 100}%`;
    bar.append(piece);
  }
  return [el("span", {}, region), bar];
}

function conditionSteps(conditions) {
  const steps = conditions.filter((c) => c.type !== "Ready").map((c) => {
    const kind = c.status === "True" ? "good" : c.reason === "Progressing" ? "busy" : c.status === "False" ? "bad" : "";
    const mark = c.status === "True" ? "✓" : c.status === "False" ? (c.reason === "Progressing" ? "…" : "✗") : "·";
    const title = `${c.type} is ${c.status}: ${c.reason}${c.message ? `, ${c.message}` : ""}`;
    return el("li", { class: `badge ${kind}`, title, "aria-label": title }, `${mark} ${c.type}`);
  });
  return el("ul", { class: "steps", "aria-label": "Conditions" }, steps);
}

function generationRow(generation) {
  const snapshots = Object.entries(generation.snapshots).map(([part, number]) => `${part} ${number}`).join(", ");
  const why = [generation.reason, generation.message].filter(Boolean).join(": ");
  return el(
    "tr", { "data-generation": generation.number },
    cell([chip(generation.number), String(generation.number)], "number tight"),
    cell(badge(generation.state, kindOf(generation.state))),
    cell(snapshots, "name"),
    cell(time(generation.serving_at || generation.created_at), "tight"),
    cell(why, "wide"),
  );
}

function sourceRow(source) {
  const found = Object.entries(source.versions).sort().map(([state, count]) => `${count} ${state}`).join(", ");
  const kinds = { failing: "bad", paused: "busy", watching: "good", waiting: "" };
  const why = source.pausedBy ? `paused by ${source.pausedBy}${source.pauseReason ? `: ${source.pauseReason}` : ""}` : source.lastError;
  return el(
    "tr", { "data-source": source.name },
    cell(el("a", { href: source.runUrl }, source.name), "name"), cell(source.part, "name"), cell(source.kind === "push" ? "push" : `${source.kind}, every ${source.every}`, "tight"),
    cell(badge(source.state, kinds[source.state] ?? "")), cell(source.lastVersion || "nothing yet", "name"),
    cell(source.lastPickUp ? time(source.lastPickUp) : "", "tight"), cell(found, "tight"), cell(why, "wide"),
  );
}

function sourcesBlock(sources) {
  if (!sources?.length) return null;
  return [el("h4", {}, "Sources"), table(["source", "part", "kind", "state", "picked up last", "since", "versions", "why"], sources.map(sourceRow))];
}

const stageKinds = { passed: "good", running: "busy", refused: "bad", failed: "bad", rolled_back: "bad" };

function duration(seconds) {
  if (seconds < 60) return `${amount(Number(seconds.toPrecision(2)))} s`;
  return seconds < 3600 ? `${Math.round(seconds / 60)} min` : `${amount(Number((seconds / 3600).toPrecision(2)))} h`;
}

function stageStep(stage) {
  const took = stage.seconds === null ? "" : ` ${duration(stage.seconds)}`;
  const since = stage.state === "running" && stage.began_at ? `, since ${new Date(stage.began_at).toLocaleString()}` : "";
  const source = stage.source === "built-in" ? "" : `, of ${stage.source}`;
  const title = `stage ${stage.name}${source}: ${words(stage.state)}${took}${since}${stage.message ? `: ${stage.message}` : ""}`;
  const mark = { passed: "✓", running: "…", skipped: "–", to_come: "·", not_reached: "·" }[stage.state] ?? "✗";
  const current = stage.state === "running" ? "step" : null;
  return el("li", { class: `badge ${stageKinds[stage.state] ?? ""}`, title, "aria-label": title, "aria-current": current, "data-stage": stage.name, "data-state": stage.state }, `${mark} ${stage.name}${took}`);
}

function stagesList(stages) {
  return el("ol", { class: "steps", "aria-label": "Stages" }, stages.map(stageStep));
}

function changeBlock(change) {
  if (!change?.stages?.length) return null;
  const told = change.stages.filter((stage) => stage.message).map((stage) => el("p", { class: "quiet" }, `${stage.name}: ${stage.message}`));
  return [el("h4", {}, `Stages of ${change.kind} ${change.id}`), stagesList(change.stages), told];
}

function shadowBlock(shadow) {
  if (!shadow) return null;
  const kind = { passed: "good", refused: "bad" }[shadow.state] ?? "busy";
  const figures = Object.entries(shadow.evidence).map(([name, value]) => fact(words(name), typeof value === "number" ? amount(value) : typeof value === "string" ? value : JSON.stringify(value)));
  return [
    el("h4", {}, `Shadow: generation ${shadow.generation} answers no client`),
    el("div", { "data-shadow": shadow.generation },
      el("p", {}, badge(shadow.state, kind), ` ${percent(shadow.share)} of the requests in ${shadow.regions.join(", ")} mirrored, since `, time(shadow.since)),
      shadow.takes ? el("p", { class: "quiet" }, `takes ${shadow.takes}`) : null,
      shadow.message ? el("p", { class: "note" }, shadow.message) : null,
      figures.length ? el("dl", { class: "facts" }, figures) : null),
  ];
}

function figureText(figure) {
  const number = (value) => {
    if (value === null) return "not measured";
    return value !== 0 && Math.abs(value) < 0.001 ? amount(value) : Number(value.toPrecision(5)).toLocaleString("en", { maximumFractionDigits: 6 });
  };
  const values = figure.before === null ? number(figure.after) : `${number(figure.before)} → ${number(figure.after)}`;
  const limit = figure.limit === null ? "" : ` (${figure.limit} ${number(figure.most)})`;
  return el("div", { class: figure.is_broken ? "badge bad" : null }, `${figure.name}: ${values}${limit}`);
}

function derivativeRow(found) {
  const kinds = { derived: "good", refused: "bad", released: "" };
  const tools = Object.entries(found.tools).map(([name, value]) => `${name} ${value}`).join(", ");
  return el(
    "tr", { "data-derivative": found.snapshot ?? "refused" },
    cell(found.part, "name"), cell(el("span", { title: tools }, found.kind), "tight"),
    cell(found.parent === null ? found.parent_digest.slice(0, 12) : String(found.parent), "number tight"), cell(found.snapshot === null ? "none" : String(found.snapshot), "number tight"),
    cell(found.hardware.join(", ") || "all", "name"), cell(badge(found.state, kinds[found.state] ?? "")),
    cell([found.reasons.map((reason) => el("div", { class: "note bad" }, reason)), found.figures.map(figureText), el("div", { class: "quiet" }, found.replayed)], "wide"),
  );
}

function derivativesBlock(derivatives) {
  if (!derivatives?.length) return null;
  return [el("h4", {}, "Derivatives"), table(["part", "step", "from snapshot", "derived", "hardware", "state", "against its parent"], derivatives.map(derivativeRow))];
}

function replicaSummary(deployments) {
  const wanted = deployments.reduce((sum, d) => sum + d.wanted, 0);
  const ready = deployments.reduce((sum, d) => sum + d.ready, 0);
  return wanted ? `${ready} of ${wanted} replicas ready` : "no replicas";
}

function layoutRow(part, graph) {
  const own = new Set(part.segments.map((segment) => segment.name));
  const givers = graph.nodes.filter((node) => own.has(node.name)).flatMap((node) => Object.values(node.inputs)).map((source) => source.split(".")[0]);
  const waits = [...new Set(givers)].filter((giver) => !own.has(giver)).sort();
  const segments = part.segments.map((segment) => el("div", {}, `${segment.name} `, el("span", { class: "quiet" }, `stage ${segment.stage}, snapshot ${segment.snapshot}`)));
  const hardware = part.hardware.map((option) => option.kind).join(", ");
  return el(
    "tr", { "data-part": part.name },
    cell(part.name, "name"), cell(amount(part.size_bytes), "tight number"), cell(hardware, "tight"), cell(segments, "name"), cell(waits.map((giver) => el("div", {}, giver)), "name"),
  );
}

function layoutBlock(layout) {
  const title = `Parts, equal in every bit to the whole at batch ${layout.equal_at.join(", ")}`;
  const lines = layout.parts.map((part) => layoutRow(part, layout.graph));
  return [el("h4", {}, title), table(["part", "bytes", "hardware", "segments", "waits for"], lines)];
}

function throughputText(line) {
  const units = `${line.hardware} (${amount(line.units)} ${line.units === 1 ? "unit" : "units"})`;
  if (line.rate === null) return `${units}: neither declared nor measured`;
  const from = line.snapshot === null ? "declared" : `measured, snapshot ${line.snapshot}`;
  return `${units}: ${amount(line.rate)} ${line.unit}, ${from}${line.met ? "" : ", misses its latency target at any load"}`;
}

function partRow(part, model) {
  const { manifest, deployments, throughput } = model;
  const name = cell(part.name, "name");
  if (part.adapterOf) {
    return el("tr", { "data-part": part.name }, name, cell(`adapter on ${part.adapterOf}`, "tight"), cell(`in the engines of ${part.adapterOf}`, "name"), cell(["asked as ", el("code", {}, `${manifest.metadata.name}:${part.name}`)], "name"));
  }
  const does = throughput.filter((line) => line.part === part.name).map((line) => el("div", { class: line.met ? null : "badge bad" }, throughputText(line)));
  return el("tr", { "data-part": part.name }, name, cell(part.engine, "tight"), cell(replicaSummary(deployments.filter((d) => d.key.part === part.name)), "name"), cell(does, "name"));
}

function partsBlock(model) {
  const parts = model.manifest.spec.parts;
  if (parts.length === 1 && parts[0].engine === "torch") return null;
  return [el("h4", {}, "Parts"), table(["part", "engine", "replicas", "a replica does"], parts.map((part) => partRow(part, model)))];
}

function partsSummary(parts) {
  const adapters = parts.filter((part) => part.adapterOf).length;
  const count = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;
  return [count(parts.length - adapters, "part"), ...(adapters ? [count(adapters, "adapter")] : [])].join(", ");
}

function demandText(spec) {
  return spec.demand.map((item) => (item.tokensPerSecond === undefined ? `${amount(item.qps)} requests/s` : `${amount(item.tokensPerSecond)} tokens/s`) + ` in ${item.region}`).join(", ");
}

function answersBlock(answers) {
  if (!answers.length) return null;
  const streamed = answers.some((found) => found.ttftP99Ms !== null);
  const ms = (value) => cell(value === null ? "" : `${amount(Number(value.toPrecision(3)))} ms`, "tight number");
  const lines = answers.map((found) => el(
    "tr", { "data-answers": found.generation },
    cell([chip(found.generation), String(found.generation)], "number tight"), cell(amount(found.requests), "number tight"), cell(amount(found.errors), "number tight"),
    ms(found.p50Ms), ms(found.p99Ms), streamed ? [ms(found.ttftP99Ms), ms(found.itlP99Ms)] : [],
  ));
  const heads = ["generation", "answers", "errors", "p50", "p99", ...(streamed ? ["first token p99", "between pieces p99"] : [])];
  return [el("h4", {}, "Answers since the routers started"), table(heads, lines)];
}

function frozenBadge(frozen) {
  const why = frozen.freezes.map((freeze) => `${freeze.reason} (freeze ${freeze.name})`).join("; ");
  const until = new Date(frozen.until).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
  return el("span", { class: "badge busy", "data-frozen": frozen.until, title: why, "aria-label": `frozen until ${until}: ${why}` }, `frozen until ${until}`);
}

function chainBlock(explanation) {
  const lines = explanation.chain.map((link) => el("tr", { "data-level": link.level }, cell(link.level, "tight"), cell(link.subject, "name"), cell(link.state, "tight"), cell(link.message, "name")));
  return [el("h4", {}, `Why: ${words(explanation.reason)}`), table(["where", "what", "state", ""], lines), el("p", { class: "quiet", "data-advice": "" }, explanation.advice)];
}

function modelCard(item) {
  const { manifest, status, deployments, layout } = item.model;
  const ready = status.conditions.find((c) => c.type === "Ready");
  const isReady = ready !== undefined && ready.status === "True";
  const isServing = status.conditions.some((c) => c.type === "Serving" && c.status === "True");
  const progressing = ready !== undefined && ["Progressing", "Pending", "Frozen"].includes(ready.reason);
  const label = isReady ? "ready" : ready ? words(ready.reason) : item.generations.length ? "pending" : "not published";
  const kind = isReady ? "good" : progressing ? "busy" : ready && ready.status === "False" ? "bad" : "";
  const serving = status.servingGeneration;
  const target = status.targetGeneration;
  const toward = target && target !== serving ? ` → ${target}` : "";
  const regions = Object.entries(status.traffic);
  const newest = item.generations[0];
  return el(
    "article", { class: "card", "data-model": manifest.metadata.name, "aria-label": `Model ${manifest.metadata.name}` },
    el(
      "div", { class: "row" },
      el("h3", {}, manifest.metadata.name), badge(label, kind), isServing && !isReady ? badge("serving", "good") : null, item.frozen ? frozenBadge(item.frozen) : null,
      el("span", { class: "quiet" }, `${manifest.spec.task}, ${layout ? partsSummary(layout.parts) : partsSummary(manifest.spec.parts)}, ${manifest.spec.sync.policy}, owner ${manifest.metadata.owner}`),
      el("span", { class: "end", "data-serving": serving === null ? "" : serving }, serving === null ? "nothing serves" : `generation ${serving}${toward}`),
    ),
    ready && !isReady && ready.message ? el("p", { class: `note ${kind}` }, ready.message) : null,
    newest && BAD.has(newest.state)
      ? el("p", { class: "note bad" }, `generation ${newest.number} was ${words(newest.state)}: ${[newest.reason, newest.message].filter(Boolean).join(": ")}`)
      : null,
    status.conditions.length ? conditionSteps(status.conditions) : null,
    item.explanation ? chainBlock(item.explanation) : null,
    changeBlock(item.change),
    shadowBlock(item.change?.shadow),
    el("p", { class: "quiet" }, `users ask for ${demandText(manifest.spec)}`),
    regions.length ? [el("h4", {}, "Traffic by region of the users"), el("div", { class: "bars" }, regions.map(([region, shares]) => trafficBar(region, shares)))] : null,
    deployments.length ? el("p", { class: "quiet" }, replicaSummary(deployments)) : null,
    layout ? layoutBlock(layout) : partsBlock(item.model),
    sourcesBlock(item.sources),
    derivativesBlock(item.derivatives),
    answersBlock(item.model.answers),
    item.generations.length
      ? [el("h4", {}, "Generations"), table(["number", "state", "snapshots", "since", "why"], item.generations.map(generationRow))]
      : el("p", { class: "quiet" }, `Publish a first snapshot: ipnext publish ${manifest.metadata.name} --part NAME=DIR`),
  );
}

function supplyBar(item) {
  const used = item.units > 0 ? Math.min(1, item.used / item.units) : item.used > 0 ? 1 : 0;
  const text = `${amount(item.used)} of ${amount(item.units)} units used, ${amount(item.free)} free`;
  const fill = el("span", { class: item.free < 0 ? "over" : "used" });
  fill.style.width = `${used * 100}%`;
  return [
    el("span", {}, item.hardware),
    el("div", {}, el("div", { class: "bar thin", role: "img", "aria-label": `${item.hardware}: ${text}` }, fill), el("span", { class: "quiet number" }, `${text}, ${amount(item.unit_cost)} $/h each`)),
  ];
}

function swapText(swap) {
  const step = `${swap.part} from snapshot ${swap.former} to ${swap.snapshot}`;
  if (swap.state === "swapping") return `swaps ${step}`;
  if (swap.state === "swapped") return `swapped ${step} in ${swap.seconds.toFixed(1)} s`;
  return `could not swap ${step}, started anew: ${swap.message}`;
}

const stages = {
  fetching: "is fetched and checked",
  waiting: "waits for the memory of engines that leave",
  loading: "vLLM loads the model",
  canary: "vLLM answers its first request",
  adapters: "vLLM loads its adapters",
};

function startText(start) {
  const last = start.output ? `; last output: ${start.output}` : "";
  return `${start.part} snapshot ${start.snapshot}: ${stages[start.stage] ?? words(start.stage)}, ${start.seconds.toFixed(0)} s${last}`;
}

function replicaRow(replica) {
  const failure = replica.failures.map((f) => `${f.code}: ${f.message}`).join("; ");
  const coming = replica.coming.length ? `goes over to generation ${replica.coming.join(", ")}` : "";
  const notes = [failure, replica.message, replica.restarts ? `${replica.restarts} restarts` : "", coming, ...replica.starts.map(startText), ...replica.swaps.map(swapText)].filter(Boolean);
  if (replica.log && (replica.failures.length || replica.restarts)) notes.push(`log ${replica.log}`);
  const note = notes.map((text) => el("div", {}, text));
  const kind = replica.failures.length ? "bad" : replica.coming.length || replica.starts.length ? "busy" : replica.phase === "running" ? "good" : kindOf(replica.phase);
  const ready = replica.ready.length ? replica.ready.map((g) => [chip(g), `${g} `]).flat() : "none";
  return el(
    "tr", { "data-replica": replica.id },
    cell([`${replica.key.model} / ${replica.key.part}`, el("div", { class: "quiet" }, replica.key.hardware)], "name"),
    cell(badge(replica.phase, kind)), cell(ready, "tight number"), cell(note, "name"),
  );
}

function drainBadge(drain) {
  const why = [drain.summary, drain.reason].filter(Boolean).join("; reason: ");
  return el("span", { class: "badge busy", "data-drain": drain.state, title: why }, words(drain.status));
}

function regionCard(region) {
  const served = region.requests;
  const failed = region.errors;
  const rest = region.replica_count - region.replicas.length;
  return el(
    "article", { class: "card", "data-region": region.region, "aria-label": `Region ${region.region}` },
    el(
      "div", { class: "row" },
      el("h3", {}, region.region), badge(region.reachable ? "reachable" : "does not answer", region.reachable ? "good" : "bad"),
      region.access_behind_seconds == null ? null : badge(`old access list for ${amount(Math.round(region.access_behind_seconds))} s`, "bad"),
      region.drain ? drainBadge(region.drain) : null,
      region.reachable ? el("span", { class: "end quiet number" }, `${amount(served)} requests, ${amount(failed)} errors`) : null,
    ),
    region.gateway_url ? el("p", { class: "quiet" }, "gateway ", el("code", {}, region.gateway_url)) : null,
    region.supply.length ? [el("h4", {}, "Supply"), el("div", { class: "bars" }, region.supply.map(supplyBar))] : null,
    region.replicas.length
      ? [el("h4", {}, "Replicas"), table(["model / part", "phase", "answers for", "note"], region.replicas.map(replicaRow)), rest > 0 ? el("p", { class: "quiet", "data-rest": rest }, `and ${amount(rest)} replicas more; ${Object.entries(region.phases).map(([phase, count]) => `${amount(count)} ${words(phase)}`).join(", ")}`) : []]
      : region.reachable ? el("p", { class: "quiet" }, "No replicas.") : null,
  );
}

function changeRow(change) {
  const target = change.generation === null ? "" : String(change.generation);
  const why = [change.reason, change.message].filter(Boolean).join(": ");
  const link = change.run_url ? el("a", { href: change.run_url, "data-key": change.id }, "open run") : "not started";
  return el(
    "tr", { "data-change": change.id },
    cell(time(change.created_at), "tight"), cell(change.model, "name"), cell(change.kind),
    cell(target ? [chip(change.generation), target] : "", "number tight"),
    cell(badge(change.state, kindOf(change.state))), cell(link, "tight"), cell([why, change.stages?.length ? stagesList(change.stages) : []], "wide"),
  );
}

function eventRow(event) {
  return el("tr", {}, cell(time(event.at), "tight"), cell(event.model || "fleet", "name"), cell(words(event.kind), "tight"), cell(event.message, "wide"));
}

function fact(name, value, kind) {
  return el("div", {}, el("dt", {}, name), el("dd", { class: kind }, value));
}

function replanNote(replan) {
  if (!replan || replan.outcome !== "failed") return null;
  return el("p", { class: "note bad", "data-replan": replan.id }, `the replan asked by ${replan.trigger} failed `, time(replan.created_at), `: ${replan.reason}: ${replan.message}`);
}

function replanFact(replan) {
  if (!replan) return null;
  if (replan.outcome === "failed") return fact("newest replan", "failed", "bad");
  const took = replan.wall_seconds === null ? "" : `, ${amount(replan.wall_seconds)} s of search`;
  return fact("newest replan", `${words(replan.outcome)}, gap ${percent(replan.gap)}${took}`);
}

function planCard({ plan, replan }) {
  if (!plan) return [el("p", { class: "card quiet" }, "No plan is in force yet: the first publish makes one."), replanNote(replan) ?? []];
  const s = plan.summary;
  const unit = (model) => (plan.tokens.includes(model) ? "tokens/s" : "requests/s");
  const more = plan.unmet_models - new Set(plan.unmet.map((u) => u.model)).size;
  const unmet = plan.unmet.map((u) => `${u.model} in ${u.region}: ${amount(u.qps)} ${unit(u.model)} unserved (${u.rules.join(", ")})`);
  const left = ["requests/s", "tokens/s"].map((u) => [u, plan.unmet.filter((x) => unit(x.model) === u).reduce((sum, x) => sum + x.qps, 0)]).filter(([, sum]) => sum > 0);
  return el(
    "div", { class: "card", "data-plan": s.id },
    el(
      "dl", { class: "facts" },
      fact("plan in force", s.scope ? `${s.status}, of ${s.scope}` : s.status), fact("cost", `${amount(s.cost_per_hour)} $/h`), fact("gap to the bound", percent(s.gap)),
      fact("unmet demand", left.map(([u, sum]) => `${amount(sum)} ${u}`).join(", ") || "none", s.unmet_qps > 0 ? "bad" : null),
      fact("replicas started", amount(s.moves)), fact("made by", s.trigger), fact("made", time(s.created_at)), replanFact(replan),
    ),
    replanNote(replan),
    unmet.length ? el("p", { class: "note bad" }, unmet.join("; ") + (more > 0 ? `; and ${amount(more)} models more` : "")) : null,
  );
}

function show(id, facts, render) {
  const text = JSON.stringify(facts);
  if (shown.get(id) === text) return;
  shown.set(id, text);
  const place = document.getElementById(id);
  const focused = place.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  place.replaceChildren(...[render(facts)].flat(Infinity));
  if (focused) place.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
}

function orEmpty(rows, text, render) {
  return rows.length ? render(rows) : el("p", { class: "card quiet" }, text);
}

function summaryLine(found) {
  const waiting = found.model_count - found.ready_count;
  const names = found.not_ready.slice(0, 10).map((name) => el("button", { type: "button", class: "link", "data-find": name, "data-key": `find-${name}` }, name));
  const more = waiting > names.length ? el("span", { class: "quiet" }, ` and ${amount(waiting - names.length)} more`) : null;
  return [
    el("span", { "data-counts": "" }, `${amount(found.ready_count)} of ${amount(found.model_count)} ready`),
    names.length ? [el("span", { class: "quiet" }, "; not ready: "), names.flatMap((name, i) => (i ? [", ", name] : [name])), more] : null,
  ].flat(Infinity).filter((part) => part !== null);
}

function noModels() {
  return view.search || view.owner || view.ready || view.after ? "No model fits the filter." : "No models yet: ipnext apply -f model.yaml";
}

function render(found) {
  show("plan", { plan: found.plan, replan: found.replan }, planCard);
  show("models-summary", { model_count: found.model_count, ready_count: found.ready_count, not_ready: found.not_ready }, summaryLine);
  show("models-body", { models: found.models, empty: noModels() }, ({ models, empty }) => orEmpty(models, empty, (all) => all.map(modelCard)));
  show("regions-body", found.regions, (regions) => orEmpty(regions, "No regions yet: ipnext apply -f fleet.yaml", (all) => all.map(regionCard)));
  show("changes-body", found.changes, (changes) => orEmpty(changes, "No runs yet.", (all) => el("div", { class: "card" }, table(["recorded", "model", "kind", "generation", "state", "run", "why"], all.map(changeRow)))));
  show("events-body", found.events, (events) => orEmpty(events, "No events yet.", (all) => el("div", { class: "card" }, table(["when", "model", "what", "message"], all.map(eventRow)))));
  document.getElementById("temporal").href = found.temporal_ui_url;
  document.title = found.model_count ? `IPnext: ${found.ready_count} of ${found.model_count} ready` : "IPnext";
  const [back, on] = [document.getElementById("previous"), document.getElementById("next")];
  back.disabled = view.before.length === 0;
  on.disabled = found.next === null;
  on.dataset.after = found.next ?? "";
  document.getElementById("pages").hidden = back.disabled && on.disabled;
  for (const node of document.querySelectorAll("time")) node.textContent = ago(node.dateTime);
}

function connection(state, text) {
  const place = document.getElementById("connection");
  if (place.dataset.state === state && place.textContent === text) return;
  place.dataset.state = state;
  place.textContent = text;
}

function address() {
  const query = new URLSearchParams({ limit: PAGE_SIZE });
  for (const name of ["search", "owner", "ready", "after"]) if (view[name]) query.set(name, view[name]);
  return `/v1/overview?${query}`;
}

// One reading at a time, REST_MS apart at least; what is heard during one is read after it.
const reading = { busy: false, again: false, timer: null, failed: 0, source: null, opened: 0, retry: null, hidden: null };

function later(ms) {
  clearTimeout(reading.timer);
  reading.timer = setTimeout(read, ms);
}

async function read() {
  clearTimeout(reading.timer);
  if (reading.hidden === "yes") return;
  if (reading.busy) {
    reading.again = true;
    return;
  }
  reading.busy = true;
  reading.again = false;
  const asked = address();
  let rest = reading.source ? IDLE_MS : REST_MS * 2;
  try {
    const answer = await fetch(asked, { cache: "no-cache", signal: AbortSignal.timeout(TIMEOUT_MS) });
    if (answer.status === 401) {
      reading.busy = false;
      loggedOut();
      return;
    }
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    const found = await answer.json();
    if (asked === address()) render(found);
    reading.failed = 0;
    connection("live", reading.source ? "live" : "live, polling");
  } catch (error) {
    reading.failed += 1;
    rest = backoff(reading.failed);
    connection("lost", `the API does not answer (${error.message}); trying again`);
  }
  reading.busy = false;
  if (asked !== address()) later(0);
  else later(reading.again && !reading.failed ? REST_MS : rest);
}

function backoff(failures) {
  return Math.min(MOST_BACKOFF_MS, REST_MS * 2 ** Math.min(failures, 6)) * (0.5 + Math.random() / 2);
}

// Many pages hear of one change at the same moment: they read within a second of it, not all at once.
function heard() {
  reading.again = true;
  if (!reading.busy) later(100 + Math.random() * (REST_MS - 100));
}

function listen() {
  clearTimeout(reading.retry);
  if (reading.source || reading.hidden === "yes") return;
  const source = new EventSource("/v1/events/stream");
  reading.source = source;
  source.onopen = () => { reading.opened = 0; };
  source.addEventListener("event", heard);
  source.addEventListener("changed", heard);
  source.onerror = () => {
    source.close();
    if (reading.source === source) reading.source = null;
    reading.opened += 1;
    clearTimeout(reading.retry);
    reading.retry = setTimeout(listen, backoff(reading.opened));
    later(REST_MS);
  };
}

function visibility() {
  clearTimeout(reading.hideTimer);
  if (document.hidden) {
    reading.hideTimer = setTimeout(() => {
      reading.hidden = "yes";
      reading.source?.close();
      reading.source = null;
      clearTimeout(reading.timer);
      clearTimeout(reading.retry);
    }, HIDDEN_MS);
  } else if (reading.hidden === "yes") {
    reading.hidden = null;
    listen();
    later(0);
  }
}

function filters() {
  const form = document.getElementById("filters");
  let typed;
  function apply() {
    const given = new FormData(form);
    Object.assign(view, { search: given.get("search").trim(), owner: given.get("owner").trim(), ready: given.get("ready"), after: null, before: [] });
    later(0);
  }
  form.addEventListener("submit", (event) => { event.preventDefault(); clearTimeout(typed); apply(); });
  form.addEventListener("input", () => { clearTimeout(typed); typed = setTimeout(apply, 300); });
  document.getElementById("next").addEventListener("click", (event) => {
    view.before.push(view.after);
    view.after = event.target.dataset.after || null;
    later(0);
  });
  document.getElementById("previous").addEventListener("click", () => {
    view.after = view.before.pop() ?? null;
    later(0);
  });
  document.getElementById("models-summary").addEventListener("click", (event) => {
    const name = event.target.dataset?.find;
    if (!name) return;
    form.elements.search.value = name;
    form.elements.ready.value = "";
    apply();
  });
}

function theme() {
  const button = document.getElementById("theme");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const choices = ["system", "light", "dark"];
  let choice = localStorage.getItem("ipnext-theme") || "system";
  function apply() {
    document.documentElement.dataset.theme = choice === "system" ? (dark.matches ? "dark" : "light") : choice;
    button.textContent = `Theme: ${choice}`;
  }
  button.addEventListener("click", () => {
    choice = choices[(choices.indexOf(choice) + 1) % choices.length];
    localStorage.setItem("ipnext-theme", choice);
    apply();
  });
  dark.addEventListener("change", apply);
  apply();
}

// A session lies in a cookie that scripts can't read. A ticket comes behind the #, which browsers send to nobody.
const login = document.getElementById("login");

async function logIn(credential) {
  const answer = await fetch("/v1/sessions", { method: "POST", headers: { Authorization: `Bearer ${credential}` } });
  if (answer.ok) return "";
  const body = await answer.json().catch(() => ({}));
  return body.message || `the API answered ${answer.status}`;
}

function loggedOut(why = "") {
  clearTimeout(reading.timer);
  clearTimeout(reading.retry);
  reading.source?.close();
  reading.source = null;
  document.querySelector("main").hidden = true;
  document.getElementById("logout").hidden = true;
  document.getElementById("login-refused").textContent = why;
  login.hidden = false;
  localStorage.removeItem("ipnext-session");
  connection("waiting", "not logged in");
}

function loggedIn() {
  localStorage.setItem("ipnext-session", "yes");
  login.hidden = true;
  document.querySelector("main").hidden = false;
  document.getElementById("logout").hidden = false;
  listen();
  read();
}

login.addEventListener("submit", async (event) => {
  event.preventDefault();
  const refused = await logIn(new FormData(login).get("key").trim());
  login.reset();
  if (refused) loggedOut(refused);
  else loggedIn();
});

document.getElementById("logout").addEventListener("click", async () => {
  await fetch("/v1/sessions/current", { method: "DELETE" });
  loggedOut();
});

// Whoever sends a link could log others in with a key of their own. Only `ipnext dev` makes one that asks nothing.
const link = document.getElementById("link");

function allowed(grant) {
  const what = grant.owner === "*" ? "everything" : `models of ${grant.owner}`;
  return `${grant.role} of ${what}${grant.region === "*" ? "" : ` in ${grant.region}`}`;
}

function asks(ticket, former) {
  return former ? former.name !== ticket.name : !ticket.byPlatform;
}

function agreed(ticket, former) {
  const say = (id, text) => { document.getElementById(id).textContent = text; };
  say("link-name", ticket.name);
  say("link-as", ticket.name);
  say("link-grants", ticket.grants.map(allowed).join(", "));
  say("link-former", former?.name ?? "");
  say("link-refuse", former ? `Stay ${former.name}` : "Do not log in");
  document.getElementById("link-instead").hidden = !former;
  document.querySelector("main").hidden = true;
  login.hidden = true;
  link.hidden = false;
  connection("waiting", "asks before it logs in");
  return new Promise((resolve) => {
    link.onsubmit = (event) => { event.preventDefault(); resolve(true); };
    document.getElementById("link-refuse").onclick = () => resolve(false);
  }).finally(() => { link.hidden = true; });
}

async function followLink(credential, former) {
  const answer = await fetch("/v1/tickets/current", { headers: { Authorization: `Bearer ${credential}` }, cache: "no-store" });
  const ticket = await answer.json().catch(() => ({}));
  if (!answer.ok) return ticket.message || `the API answered ${answer.status}`;
  if (asks(ticket, former) && !(await agreed(ticket, former))) return "";
  return logIn(credential);
}

async function begin() {
  const ticket = new URLSearchParams(location.hash.slice(1)).get("ticket");
  if (ticket) history.replaceState(null, "", location.pathname + location.search);
  const current = () => fetch("/v1/sessions/current", { cache: "no-store" });
  let refused = "";
  if (ticket) {
    const former = localStorage.getItem("ipnext-session") ? await current() : null;
    refused = await followLink(ticket, former?.ok ? await former.json() : null);
  }
  const known = await current();
  if (known.status === 401) loggedOut(refused);
  else loggedIn();
}

window.addEventListener("hashchange", () => { if (location.hash.includes("ticket=")) begin(); });
theme();
filters();
document.addEventListener("visibilitychange", visibility);
visibility();
begin().catch(() => loggedIn());
