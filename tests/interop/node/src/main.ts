/** Uses the service as a Node client does, and says after each step that it went well. */

import { connect, connectForErasures, connectForTransfers, connectForWatches } from "./client.js";
import { LifecycleSteps } from "./lifecycle_steps.js";
import { restart } from "./restart.js";
import { Scenario } from "./scenario.js";
import { WatchSteps } from "./watch_steps.js";

const { TARGET = "", SERVICE_CONFIG = "", LOCKED = "", SCRIPTED = "" } = process.env;
const client = connect(TARGET, SERVICE_CONFIG);
const watchingClient = connectForWatches(TARGET, SERVICE_CONFIG);
const scriptedClient = connectForWatches(SCRIPTED, SERVICE_CONFIG);
const transferClient = connectForTransfers(TARGET, SERVICE_CONFIG);
const erasureClient = connectForErasures(TARGET, SERVICE_CONFIG);
const scenario = new Scenario(client, LOCKED);
const lifecycle = new LifecycleSteps(scenario, transferClient, erasureClient);
const watches = new WatchSteps(scenario, watchingClient, scriptedClient);
const steps: [string, () => Promise<void>][] = [
  ["create", () => scenario.create()],
  ["append", () => scenario.append()],
  ["pages", () => scenario.pages()],
  ["etag", () => scenario.etag()],
  ["not_found", () => scenario.notFound()],
  ["denied", () => scenario.denied()],
  ["deadline", () => scenario.deadline()],
  ["stream", () => scenario.stream()],
  ["retention", () => lifecycle.retention()],
  ["rewind", () => lifecycle.rewind()],
  ["fork", () => lifecycle.fork()],
  ["undelete", () => lifecycle.undelete()],
  ["delete_many", () => lifecycle.deleteMany()],
  ["transfer", () => lifecycle.transfer()],
  ["restart", () => restart(scenario)],
  ["watch", () => watches.watch()],
  ["watch_reset", () => watches.reset()],
  ["watch_refused", () => watches.refused()],
  ["watch_silence", () => watches.silence()],
  ["watch_ends", () => watches.ends()],
  ["watch_restart", () => watches.restart()],
];

for (const [name, run] of steps) {
  try {
    await run();
  } catch (error) {
    console.error(`${name}:`, error);
    process.exitCode = 1;
    break;
  }
  console.log("ok", name);
}
client.close();
watchingClient.close();
scriptedClient.close();
transferClient.close();
erasureClient.close();
process.stdin.destroy();
