package interop;

import io.grpc.ManagedChannel;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.Map;

/** Uses the service as a Java client does, and says after each step that it went well. */
public final class Interop {

    private interface Step {
        void run() throws Exception;
    }

    private Interop() {}

    public static void main(String[] args) throws Exception {
        ManagedChannel channel = Channels.open(env("TARGET"), Path.of(env("SERVICE_CONFIG")));
        ManagedChannel watching = Channels.openForWatches(env("TARGET"), Path.of(env("SERVICE_CONFIG")));
        ManagedChannel scripted = Channels.openForWatches(env("SCRIPTED"), Path.of(env("SERVICE_CONFIG")));
        try {
            Scenario scenario = new Scenario(channel, env("LOCKED"));
            LifecycleSteps lifecycle = new LifecycleSteps(scenario, channel);
            run(steps(scenario, lifecycle, new WatchSteps(scenario, watching, scripted)));
        } catch (Exception | AssertionError problem) {
            problem.printStackTrace();
            System.exit(1); // other threads are still running when one has failed
        } finally {
            channel.shutdownNow();
            watching.shutdownNow();
            scripted.shutdownNow();
        }
    }

    private static Map<String, Step> steps(Scenario scenario, LifecycleSteps lifecycle, WatchSteps watches) {
        Map<String, Step> steps = new LinkedHashMap<>();
        steps.put("create", scenario::create);
        steps.put("append", scenario::append);
        steps.put("pages", scenario::pages);
        steps.put("etag", scenario::etag);
        steps.put("not_found", scenario::notFound);
        steps.put("denied", scenario::denied);
        steps.put("deadline", scenario::deadline);
        steps.put("stream", scenario::stream);
        steps.put("retention", lifecycle::retention);
        steps.put("rewind", lifecycle::rewind);
        steps.put("fork", lifecycle::fork);
        steps.put("undelete", lifecycle::undelete);
        steps.put("delete_many", lifecycle::deleteMany);
        steps.put("transfer", lifecycle::transfer);
        steps.put("restart", () -> new Restart(scenario).run());
        steps.put("watch", watches::watch);
        steps.put("watch_reset", watches::reset);
        steps.put("watch_refused", watches::refused);
        steps.put("watch_silence", watches::silence);
        steps.put("watch_ends", watches::ends);
        steps.put("watch_restart", watches::restart);
        return steps;
    }

    private static void run(Map<String, Step> steps) throws Exception {
        for (Map.Entry<String, Step> step : steps.entrySet()) {
            step.getValue().run();
            System.out.println("ok " + step.getKey());
        }
    }

    private static String env(String name) {
        String value = System.getenv(name);
        if (value == null) {
            throw new IllegalArgumentException("the environment variable " + name + " is missing");
        }
        return value;
    }
}
