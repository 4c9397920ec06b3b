package interop;

import conversations.v1.Item;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;

/**
 * Keeps calling while the server restarts. No call may fail, and no append may be lost or duplicated. Only the service
 * config retries.
 */
final class Restart {

    private static final int WORKERS = 4;
    private static final int AFTER = 20; // calls of each kind after the restart
    private static final BufferedReader STDIN =
            new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));

    private final Scenario scenario;
    private volatile boolean isBack;

    Restart(Scenario scenario) {
        this.scenario = scenario;
    }

    void run() throws Exception {
        int before = scenario.all().size();
        List<String> answered = workThrough("restart?");
        List<Item> items = scenario.all();
        same(answered, Scenario.ids(items.subList(before, items.size())));
    }

    /**
     * Asks for a restart, and calls until it has been over for a while. Returns the ids of the items whose append was
     * answered.
     */
    List<String> workThrough(String ask) throws Exception {
        isBack = false;
        ExecutorService threads = Executors.newFixedThreadPool(WORKERS);
        List<Future<List<String>>> working =
                Collections.nCopies(WORKERS, threads).stream().map(each -> each.submit(this::work)).toList();
        System.out.println(ask);
        STDIN.readLine();
        isBack = true;
        List<String> answered = new ArrayList<>();
        for (Future<List<String>> ids : working) {
            answered.addAll(ids.get());
        }
        threads.shutdown();
        return answered;
    }

    /** The ids of the items that were appended as far as the answers tell. */
    private List<String> work() {
        List<String> appended = new ArrayList<>();
        for (int left = AFTER; left > 0; ) {
            if (isBack) {
                left--;
            }
            scenario.read();
            appended.add(scenario.appendOne("still there?"));
        }
        return appended;
    }

    /** Lost, doubled and foreign items all show here. */
    private static void same(List<String> answered, List<String> stored) {
        Check.that(
                answered.stream().sorted().toList().equals(stored.stream().sorted().toList()),
                "%d appends were answered, %d items are stored".formatted(answered.size(), stored.size()));
    }
}
