package interop;

import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import java.util.Objects;

/** Where an answer is not the one expected, the step fails. */
final class Check {

    private Check() {}

    static void equal(Object expected, Object actual) {
        if (!Objects.equals(expected, actual)) {
            throw new AssertionError("want %s, got %s".formatted(expected, actual));
        }
    }

    static void that(boolean condition, String what) {
        if (!condition) {
            throw new AssertionError(what);
        }
    }

    /** The error that a call ends with, which has this code. */
    static StatusRuntimeException fails(Status.Code code, Runnable call) {
        try {
            call.run();
        } catch (StatusRuntimeException error) {
            if (error.getStatus().getCode() == code) {
                return error;
            }
            throw error;
        }
        throw new AssertionError("want %s, got no error".formatted(code));
    }

    /** The same, with this reason. */
    static StatusRuntimeException fails(Status.Code code, String reason, Runnable call) {
        StatusRuntimeException error = fails(code, call);
        equal(reason, ErrorDetails.reason(error));
        return error;
    }
}
